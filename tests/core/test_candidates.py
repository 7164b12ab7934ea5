"""The drafter's ranking against a float64 oracle, and that the shared noise does what it is for."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dflash_core.contracts import DEFAULT_RANKING, DraftRanking, SamplingParams
from dflash_core.sampling.candidates import rank_candidates
from dflash_core.sampling.choose import choose_tokens
from dflash_core.sampling.rows import RankingRows, SamplingRows
from tests.core import sampling_oracle as oracle
from tests.core.sampling_oracle import lies_on_top_p_border, random_logits, rankings, sampling_params

WITHOUT_NOISE = DraftRanking(uses_noise=False)


@given(
    row_list=st.lists(st.tuples(sampling_params, st.integers(0, 2**20), rankings), min_size=1, max_size=5),
    seed=st.integers(0, 2**32 - 1),
    vocab=st.sampled_from([5, 64, 257, 1500]),
    num_candidates=st.sampled_from([1, 4, 64]),
    sharpness=st.sampled_from([0.3, 1.0, 2.0]),
    spread=st.sampled_from([0.1, 1.0, 8.0]),
    num_levels=st.sampled_from([None, None, 8]),
)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_ranking_is_the_oracles(row_list, seed, vocab, num_candidates, sharpness, spread, num_levels) -> None:
    """Every row with a ranking of its own."""
    num_candidates = min(num_candidates, vocab)
    logits = random_logits(seed, len(row_list), vocab + 3, spread, num_levels)
    logits[:, vocab:] = 1e4
    rows = SamplingRows.of([(params, position) for params, position, _ in row_list])
    ranking_rows = RankingRows.of([ranking for _, _, ranking in row_list], rows)
    ids, scores = rank_candidates(torch.from_numpy(logits), rows, ranking_rows, vocab, num_candidates, sharpness)
    assert ids.dtype == torch.int32
    assert scores.dtype == torch.float32
    assert ids.shape == scores.shape == (len(row_list), num_candidates)
    for row, (params, position, ranking) in enumerate(row_list):
        if not params.is_greedy and lies_on_top_p_border(logits[row, :vocab], params):
            continue
        expected = oracle.draft_scores(logits[row, :vocab], params, position, ranking, sharpness)
        tolerance = 1e-5 + 1e-6 * np.abs(expected[np.isfinite(expected)]).max()
        found = ids[row].numpy()
        assert len(set(found.tolist())) == num_candidates
        assert np.all(np.diff(scores[row].numpy()) <= 0)
        np.testing.assert_allclose(scores[row].numpy(), expected[found], rtol=0, atol=tolerance)
        left_out = np.delete(expected, found)
        assert left_out.size == 0 or left_out.max() <= expected[found].min() + tolerance


def test_equal_scores_are_ranked_by_the_lowest_id() -> None:
    logits = torch.zeros(2, 200)
    logits[:, [150, 90]] = 1.0
    rows = SamplingRows.of([(SamplingParams(), 0), (SamplingParams(temperature=1.0), 0)])
    ids, _ = rank_candidates(logits, rows, RankingRows.of([WITHOUT_NOISE] * 2, rows), 200, 6, 1.0)
    assert ids.tolist() == [[90, 150, 0, 1, 2, 3]] * 2


def test_a_large_vocabulary() -> None:
    logits = random_logits(4, 3, 152_064, 4.0, None)
    row_list = [
        (SamplingParams(), 3),
        (SamplingParams(temperature=1.0, seed=9), 4),
        (SamplingParams(temperature=0.7, top_k=20, top_p=0.8, seed=10), 5),
    ]
    rankings = [DEFAULT_RANKING, DEFAULT_RANKING, DraftRanking(truncation_penalty=4.0)]
    rows = SamplingRows.of(row_list)
    ids, scores = rank_candidates(torch.from_numpy(logits), rows, RankingRows.of(rankings, rows), 151_936, 64, 1.0)
    for row, (params, position) in enumerate(row_list):
        expected = oracle.draft_scores(logits[row, :151_936], params, position, rankings[row], 1.0)
        assert ids[row].tolist() == np.argsort(-expected, kind="stable")[:64].tolist()
        np.testing.assert_allclose(scores[row].numpy(), expected[ids[row].numpy()], atol=1e-4)


def test_the_first_candidate_of_a_perfect_drafter_is_the_targets_choice() -> None:
    """Same logits, same key: at any temperature without truncation the ranking's head is the choice itself."""
    logits = torch.from_numpy(random_logits(5, 300, 200, 2.0, None))
    rows = SamplingRows.of([(SamplingParams(temperature=(0.0, 0.6, 1.0, 1.7)[i % 4], seed=i), i) for i in range(300)])
    ids, _ = rank_candidates(logits, rows, RankingRows.of([DEFAULT_RANKING] * 300, rows), 200, 4, 1.0)
    assert torch.equal(ids[:, 0].long(), choose_tokens(logits, rows, 200))


def test_shared_noise_raises_agreement_and_a_wrong_position_does_not() -> None:
    """A draft distribution near the target's: how often the target's choice is the drafter's first candidate."""
    num_rows, vocab = 4000, 120
    target = torch.from_numpy(random_logits(6, num_rows, vocab, 2.0, None))
    draft = target + torch.from_numpy(random_logits(7, num_rows, vocab, 0.5, None))

    def rows(shift: int) -> SamplingRows:
        return SamplingRows.of([(SamplingParams(temperature=1.0, seed=i), i + shift) for i in range(num_rows)])

    choice = choose_tokens(target, rows(0), vocab)

    def agreement(shift: int, ranking: DraftRanking) -> float:
        shifted = rows(shift)
        ids, _ = rank_candidates(draft, shifted, RankingRows.of([ranking] * num_rows, shifted), vocab, 1, 1.0)
        return float((ids[:, 0] == choice).float().mean())

    with_noise, without_noise = agreement(0, DEFAULT_RANKING), agreement(0, WITHOUT_NOISE)
    wrong_position = agreement(1, DEFAULT_RANKING)
    assert with_noise > 1.5 * without_noise
    assert wrong_position < without_noise
