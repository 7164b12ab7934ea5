"""What ranking candidates in Triton must do; collected like `attention_cases.py`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from dflash_core.contracts import DEFAULT_RANKING, DraftRanking, SamplingParams
from dflash_core.errors import InvalidSettings
from dflash_core.sampling.device.choose import choose_tokens_op
from dflash_core.sampling.device.rank import MOST_CANDIDATES, rank_candidates_op
from dflash_core.sampling.rows import RankingRows, SamplingRows
from tests.core import sampling_oracle as oracle
from tests.core.sampling_cases import SAMPLING_DEVICE, VOCAB, arguments
from tests.core.sampling_oracle import lies_on_top_p_border, random_logits, random_rankings, random_rows

WITHOUT_NOISE = DraftRanking(uses_noise=False)


def ranking_arguments(
    row_list: Sequence[tuple[SamplingParams, int]], rankings: Sequence[DraftRanking] | DraftRanking
) -> tuple[Tensor, ...]:
    """The operator's row arguments; one ranking stands for that of every row."""
    each = [rankings] * len(row_list) if isinstance(rankings, DraftRanking) else rankings
    ranking = RankingRows.of(each, SamplingRows.of(row_list, SAMPLING_DEVICE))
    return (*arguments(row_list), ranking.noise_scale, ranking.truncation_penalty)


def rank(
    logits: np.ndarray | Tensor,
    row_list: Sequence[tuple[SamplingParams, int]],
    vocab: int,
    num_candidates: int,
    rankings: Sequence[DraftRanking] | DraftRanking = DEFAULT_RANKING,
    sharpness: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    logits = torch.as_tensor(logits).to(SAMPLING_DEVICE)
    ids, scores = rank_candidates_op(logits, *ranking_arguments(row_list, rankings), vocab, num_candidates, sharpness)
    assert ids.dtype == torch.int32
    assert scores.dtype == torch.float32
    assert ids.shape == scores.shape == (len(row_list), num_candidates)
    return ids.cpu().numpy(), scores.cpu().numpy()


def check_ranking(
    logits: np.ndarray,
    row_list: Sequence[tuple[SamplingParams, int]],
    ids: np.ndarray,
    scores: np.ndarray,
    rankings: Sequence[DraftRanking] | DraftRanking = DEFAULT_RANKING,
    sharpness: float = 1.0,
) -> int:
    """Every row is the oracle's, up to rounding; returns how many are only with another border of top-p within it."""
    num_excused = 0
    for row, (params, position) in enumerate(row_list):
        found = ids[row]
        assert len(set(found.tolist())) == len(found)
        assert np.all(np.diff(scores[row]) <= 0)
        ranking = rankings if isinstance(rankings, DraftRanking) else rankings[row]
        expected = oracle.draft_scores(logits[row], params, position, ranking, sharpness)
        tolerance = 1e-5 + 1e-6 * np.abs(expected[np.isfinite(expected)]).max()
        is_equal = np.allclose(scores[row], expected[found], rtol=0, atol=tolerance)
        left_out = np.delete(expected, found)
        if not is_equal or (left_out.size and left_out.max() > expected[found].min() + tolerance):
            assert not params.is_greedy
            assert lies_on_top_p_border(logits[row], params)
            num_excused += 1
    return num_excused


@pytest.mark.parametrize(
    ("seed", "vocab", "num_candidates", "dtype", "spread", "num_levels", "sharpness"),
    [
        (0, VOCAB, 64, torch.bfloat16, 3.0, None, 1.0),
        (1, 2100, 5, torch.float32, 1.0, 8, 0.3),
        (2, 1500, 33, torch.float16, 8.0, None, 2.0),
        (3, 64, 64, torch.float32, 0.1, 1, 0.7),
        (4, 1, 1, torch.float32, 1.0, None, 1.0),
        (5, 350, 130, torch.float32, 1.0, None, 1.0),
    ],
)
def test_rankings_are_the_oracles(
    seed: int,
    vocab: int,
    num_candidates: int,
    dtype: torch.dtype,
    spread: float,
    num_levels: int | None,
    sharpness: float,
) -> None:
    """Every row with a ranking of its own."""
    logits = torch.from_numpy(random_logits(seed, 3, vocab + 3, spread, num_levels)).to(dtype)
    logits[:, vocab:] = 1e4
    row_list = random_rows(seed + 100, 3)
    rankings = random_rankings(seed, 3)
    ids, scores = rank(logits, row_list, vocab, num_candidates, rankings, sharpness)
    assert check_ranking(logits[:, :vocab].float().numpy(), row_list, ids, scores, rankings, sharpness) <= 1


def test_equal_scores_are_ranked_by_the_lowest_id() -> None:
    logits = torch.zeros(3, 700)
    logits[:2, [650, 90]] = 1.0
    row_list = [(SamplingParams(), 0), (SamplingParams(temperature=1.0), 0), (SamplingParams(), 0)]
    ids, _ = rank(logits, row_list, 700, 6, WITHOUT_NOISE)
    assert ids.tolist() == [[90, 650, 0, 1, 2, 3]] * 2 + [[0, 1, 2, 3, 4, 5]]


def test_the_best_ids_may_share_a_tile() -> None:
    """In falling order over the vocabulary, and all in one place."""
    logits = -np.arange(3 * 700, dtype=np.float32).reshape(3, 700) % 700
    logits[1] = logits[1, ::-1]
    logits[2] = -((np.arange(700) - 350.25) ** 2)
    row_list = [(SamplingParams(), 0)] * 3
    ids, scores = rank(logits, row_list, 700, 20)
    assert ids.tolist() == np.argsort(-logits, axis=1, kind="stable")[:, :20].tolist()
    assert check_ranking(logits, row_list, ids, scores) == 0


def test_the_first_candidate_of_a_perfect_drafter_is_the_choice() -> None:
    logits = torch.from_numpy(random_logits(5, 4, 300, 2.0, None)).to(SAMPLING_DEVICE)
    row_list = [(SamplingParams(temperature=(0.0, 0.6, 1.0, 1.7)[i % 4], seed=i), i) for i in range(4)]
    ids, _ = rank(logits, row_list, 300, 4)
    assert ids[:, 0].tolist() == choose_tokens_op(logits, *arguments(row_list), 300).tolist()


def test_rankings_do_not_depend_on_the_batch() -> None:
    logits = torch.from_numpy(random_logits(7, 4, 2600, 2.0, None))
    row_list = [
        (SamplingParams(), 3),
        (SamplingParams(temperature=1.0, seed=2), 4),
        (SamplingParams(temperature=0.7, top_k=20, top_p=0.8, seed=3), 5),
        (SamplingParams(temperature=0.7, min_p=0.1, seed=4), 6),
    ]
    rankings = [DraftRanking(), DraftRanking(), DraftRanking(truncation_penalty=5.0), WITHOUT_NOISE]
    ids, scores = rank(logits, row_list, 2590, 16, rankings)
    for row in range(4):
        one = slice(row, row + 1)
        alone_ids, alone_scores = rank(logits[one], row_list[one], 2590, 16, rankings[one])
        assert alone_ids.tobytes() == ids[row].tobytes()
        assert alone_scores.tobytes() == scores[row].tobytes()
    none_ids, none_scores = rank(logits[:0], [], 2590, 16)
    assert none_ids.size == none_scores.size == 0


def test_a_row_without_numbers_ends() -> None:
    """Its candidates mean nothing, but they are ids, and the other rows are as they would be."""
    logits = torch.from_numpy(random_logits(8, 4, 600, 2.0, None))
    logits[0] = torch.nan
    logits[1, 500:] = torch.nan
    logits[2] = -torch.inf
    row_list = [(SamplingParams(temperature=1.0, top_p=0.9, seed=1), 3)] * 4
    ids, scores = rank(logits, row_list, 590, 64)
    assert ids.min() >= 0
    assert ids.max() < 590
    assert np.isneginf(scores[2]).all()
    assert check_ranking(logits[3:, :590].numpy(), row_list[3:], ids[3:], scores[3:]) == 0


def test_too_many_candidates_are_refused() -> None:
    logits = torch.zeros(1, 1000)
    with pytest.raises(InvalidSettings, match=f"{MOST_CANDIDATES + 1}.*{MOST_CANDIDATES}"):
        rank(logits, [(SamplingParams(), 0)], 1000, MOST_CANDIDATES + 1)


def test_ranking_tells_compilers_the_truth() -> None:
    logits = torch.zeros(3, 40, device=SAMPLING_DEVICE)
    row_list = [(SamplingParams(temperature=1.0, seed=s), s) for s in range(3)]
    torch.library.opcheck(
        rank_candidates_op,
        (logits, *ranking_arguments(row_list, DEFAULT_RANKING), 37, 5, 0.5),
        test_utils=("test_schema", "test_faketensor"),
    )
