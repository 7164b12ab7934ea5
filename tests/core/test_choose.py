"""Choosing tokens: the numba form against a numpy oracle, and the distribution itself."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dflash_core.contracts import SamplingParams
from dflash_core.sampling.choose import choose_tokens
from dflash_core.sampling.rows import SamplingRows
from tests.core import sampling_oracle as oracle
from tests.core.sampling_oracle import lies_on_top_p_border, random_logits, sampling_params


@given(
    row_list=st.lists(st.tuples(sampling_params, st.integers(0, 2**20)), min_size=1, max_size=8),
    seed=st.integers(0, 2**32 - 1),
    vocab=st.sampled_from([1, 3, 63, 64, 65, 257, 1500]),
    padding=st.sampled_from([0, 1, 7, 64]),
    spread=st.sampled_from([0.1, 1.0, 5.0, 100.0]),
    num_levels=st.sampled_from([None, None, 1, 8]),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_choice_is_the_oracles(row_list, seed, vocab, padding, spread, num_levels) -> None:
    logits = random_logits(seed, len(row_list), vocab + padding, spread, num_levels)
    logits[:, vocab:] = 1e4  # padding must never win
    chosen = choose_tokens(torch.from_numpy(logits), SamplingRows.of(row_list), vocab)
    for row, (params, position) in enumerate(row_list):
        scores = oracle.scores(logits[row, :vocab], params, position)
        token = int(chosen[row])
        assert 0 <= token < vocab
        if token == scores.argmax():
            continue
        # Another id only where the two scores lie within the last operations' rounding, or an id within it of a
        # border of top-p: never where nothing is random.
        assert not params.is_greedy
        margin = scores.max() - scores[token]
        assert margin <= 8 * np.spacing(np.abs(scores.max())) or lies_on_top_p_border(logits[row, :vocab], params)


def test_a_large_vocabulary() -> None:
    logits = random_logits(3, 6, 152_064, 3.0, None)
    row_list = [
        (SamplingParams(), 5),
        (SamplingParams(temperature=1.0, seed=1), 6),
        (SamplingParams(temperature=0.7, top_k=20, top_p=0.8, seed=2), 7),
        (SamplingParams(temperature=1.0, top_p=0.95, seed=3), 8),
        (SamplingParams(temperature=1.0, min_p=0.05, seed=4), 9),
        (SamplingParams(temperature=1.0, top_k=5000, seed=5), 10),
    ]
    chosen = choose_tokens(torch.from_numpy(logits), SamplingRows.of(row_list), 151_936).tolist()
    assert chosen == [
        int(oracle.scores(logits[row, :151_936], params, position).argmax())
        for row, (params, position) in enumerate(row_list)
    ]


def test_a_row_does_not_depend_on_its_batch() -> None:
    logits = torch.from_numpy(random_logits(9, 24, 300, 2.0, None))
    row_list = [
        (SamplingParams(temperature=t, top_k=k, top_p=p, seed=seed), 100 + seed)
        for seed, (t, k, p) in enumerate([(0.0, 0, 1.0), (1.0, 0, 1.0), (0.7, 20, 0.8), (1.2, 0, 0.9)] * 6)
    ]
    together = choose_tokens(logits, SamplingRows.of(row_list), 290)
    alone = [choose_tokens(logits[i : i + 1], SamplingRows.of([row_list[i]]), 290).item() for i in range(24)]
    reverse = choose_tokens(logits.flip(0), SamplingRows.of(row_list[::-1]), 290).flip(0)
    assert together.tolist() == alone == reverse.tolist()


def test_ties_go_to_the_lowest_id() -> None:
    logits = torch.zeros(3, 100)
    logits[:, [17, 40, 80]] = 1.0
    rows = SamplingRows.of(
        [
            (SamplingParams(), 0),
            (SamplingParams(temperature=1.0, top_k=1, seed=8), 0),
            (SamplingParams(temperature=1.0, top_p=0.001, seed=8), 0),
        ]
    )
    assert choose_tokens(logits, rows, 100).tolist() == [17, 17, 17]
    assert choose_tokens(-torch.zeros(3, 100).index_fill(1, torch.arange(50), -0.0), rows, 100).tolist() == [0, 0, 0]


def test_equal_values_at_a_top_k_border_keep_the_lowest_ids() -> None:
    logits = torch.zeros(2000, 40)
    rows = SamplingRows.of([(SamplingParams(temperature=1.0, top_k=3, seed=s), 1) for s in range(2000)])
    assert set(choose_tokens(logits, rows, 40).tolist()) == {0, 1, 2}


def test_rows_without_a_choice_are_marked() -> None:
    logits = torch.zeros(8, 70)
    logits[0:2] = torch.nan
    logits[2:4, 5] = torch.nan
    logits[4:6] = -torch.inf
    rows = SamplingRows.of(
        [(SamplingParams(temperature=t, top_p=p, seed=3), 1) for t, p in [(0.0, 1.0), (1.0, 0.9)] * 4]
    )
    chosen = choose_tokens(logits, rows, 70).tolist()
    assert chosen[:6] == [-1] * 6
    assert min(chosen[6:]) >= 0


def test_banned_ids_are_never_chosen() -> None:
    logits = torch.full((500, 90), -torch.inf)
    logits[:, [3, 88]] = 0.0
    rows = SamplingRows.of([(SamplingParams(temperature=2.0, top_k=10, seed=s), 1) for s in range(500)])
    assert set(choose_tokens(logits, rows, 90).tolist()) == {3, 88}


def test_bf16_logits_are_chosen_in_fp32() -> None:
    logits = torch.from_numpy(random_logits(1, 20, 200, 2.0, None)).bfloat16()
    rows = SamplingRows.of([(SamplingParams(temperature=0.9, seed=s), s) for s in range(20)])
    assert torch.equal(choose_tokens(logits, rows, 200), choose_tokens(logits.float(), rows, 200))


def test_a_tiny_temperature_is_greedy() -> None:
    logits = torch.from_numpy(random_logits(1, 4, 200, 2.0, None))
    rows = SamplingRows.of([(SamplingParams(temperature=t, seed=5), 1) for t in (0.0, 1e-40, 1e-9, 0.9e-5)])
    assert torch.equal(choose_tokens(logits, rows, 200), logits.argmax(dim=1))


def test_the_position_in_the_key_counts() -> None:
    """Neighbouring positions choose independently: with a flat distribution they agree one time in `vocab`."""
    logits = torch.zeros(4000, 50)
    at = [
        choose_tokens(logits, SamplingRows.of([(SamplingParams(temperature=1.0, seed=s), p) for s in range(4000)]), 50)
        for p in (6, 7, 8)
    ]
    for here, there in pairwise(at):
        assert 40 <= int((here == there).sum()) <= 125  # 80 expected, standard deviation 9


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0},
        {"temperature": 0.7},
        {"temperature": 1.6},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 0.8, "top_p": 0.85},
        {"temperature": 1.2, "min_p": 0.1},
        {"temperature": 1.0, "top_k": 12, "top_p": 0.9, "min_p": 0.02},
    ],
    ids=str,
)
@pytest.mark.parametrize("vary", ["seed", "position"])
def test_frequencies_are_softmax(params: dict[str, float], vary: str) -> None:
    """Chi-square over 20,000 seeds, and over 20,000 positions of one seed. The seeds are fixed, so is the verdict."""
    logits = random_logits(21, 1, 40, 1.5, None)
    num_draws = 20_000
    row_list = [
        (SamplingParams(seed=i, **params), 3) if vary == "seed" else (SamplingParams(seed=77, **params), i)
        for i in range(num_draws)
    ]
    drawn = choose_tokens(torch.from_numpy(logits).expand(num_draws, 40), SamplingRows.of(row_list), 40)
    counts = np.bincount(drawn.numpy(), minlength=40)

    values = oracle.processed(logits[0], SamplingParams(**params)).astype(np.float64)
    expected = np.exp(values - values.max())
    expected *= num_draws / expected.sum()
    assert counts[expected == 0].sum() == 0
    rare = (expected > 0) & (expected < 8)
    common = expected >= 8
    observed = np.append(counts[common], counts[rare].sum())[: common.sum() + rare.any()]
    wanted = np.append(expected[common], expected[rare].sum())[: common.sum() + rare.any()]
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    freedom = len(wanted) - 1
    assert statistic < freedom + 3.5 * np.sqrt(2 * freedom)
