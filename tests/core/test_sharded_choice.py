"""A choice over ranks is the choice from whole rows, id for id."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dflash_core.contracts import SamplingParams
from dflash_core.parallel.plan import shard_size
from dflash_core.sampling.arrays import SamplingArrays
from dflash_core.sampling.choose import choose_tokens
from dflash_core.sampling.rows import SamplingRows
from dflash_core.sampling.sharded import VocabularyShard, choose_over_ranks
from tests.core.in_memory_ranks import InMemoryRanks, run_ranks
from tests.core.sampling_oracle import random_logits, random_rows, sampling_params

Rows = list[tuple[SamplingParams, int]]


def choose_in_parts(logits: np.ndarray, row_list: Rows, vocab_size: int, tp_size: int) -> list[list[int]]:
    """What each rank says."""
    columns = shard_size(logits.shape[1], tp_size)
    sampling = SamplingArrays.repeated([p for p, _ in row_list], [1] * len(row_list), [at for _, at in row_list])

    def of_rank(ranks: InMemoryRanks) -> list[int]:
        first = ranks.tp_rank * columns
        part = torch.from_numpy(logits[:, first : first + columns])
        shard = VocabularyShard(first, vocab_size)
        tokens: list[int] = choose_over_ranks(part, SamplingRows.of(row_list), sampling, shard, ranks).tolist()
        return tokens

    return run_ranks(tp_size, of_rank)


@given(
    row_list=st.lists(st.tuples(sampling_params, st.integers(0, 2**20)), min_size=1, max_size=8),
    seed=st.integers(0, 2**32 - 1),
    vocab=st.sampled_from([5, 63, 64, 65, 257, 1500]),
    padding=st.sampled_from([0, 1, 7, 64]),
    spread=st.sampled_from([0.1, 1.0, 5.0, 100.0]),
    num_levels=st.sampled_from([None, None, 1, 8]),
    tp_size=st.sampled_from([2, 3, 4]),
    banned=st.sampled_from([0.0, 0.5, 1.0]),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_rank_chooses_what_one_rank_does(
    row_list: Rows,
    seed: int,
    vocab: int,
    padding: int,
    spread: float,
    num_levels: int | None,
    tp_size: int,
    banned: float,
) -> None:
    assume(shard_size(vocab + padding, tp_size) * (tp_size - 1) < vocab + padding)  # others are refused
    logits = random_logits(seed, len(row_list), vocab + padding, spread, num_levels)
    logits[:, vocab:] = 1e4  # padding must never win
    rng = np.random.default_rng(seed)
    logits[:, :vocab][rng.random((len(row_list), vocab)) < rng.random() * banned] = -np.inf
    expected = choose_tokens(torch.from_numpy(logits), SamplingRows.of(row_list), vocab).tolist()
    assert choose_in_parts(logits, row_list, vocab, tp_size) == [expected] * tp_size


def test_a_large_vocabulary() -> None:
    logits, row_list = random_logits(3, 24, 152_064, 3.0, None), random_rows(7, 24)
    expected = choose_tokens(torch.from_numpy(logits), SamplingRows.of(row_list), 151_936).tolist()
    assert choose_in_parts(logits, row_list, 151_936, 2) == [expected] * 2


def test_rows_without_a_choice_are_marked() -> None:
    logits = np.zeros((6, 70), np.float32)
    logits[0:2, 60] = np.nan
    logits[2:4, 5] = np.nan
    logits[4:6] = -np.inf
    row_list = [(SamplingParams(temperature=t, top_p=p, seed=3), 1) for t, p in [(0.0, 1.0), (1.0, 0.9)] * 3]
    assert choose_in_parts(logits, row_list, 70, 2) == [[-1] * 6] * 2
