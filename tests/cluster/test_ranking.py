"""How blocks are asked to be ranked: the score of a draft's ranks, and what is learned from it."""

from __future__ import annotations

import json
from itertools import product
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.router.ranking import RANKINGS, RankingTuner, Truncation
from cluster.router.ranking_score import DEPTH_WEIGHT, rank_score
from dflash_core.contracts import DEFAULT_RANKING, DraftRanking, SamplingParams
from dflash_core.errors import InvalidSettings

HOT = SamplingParams(temperature=1.0, seed=1)
WITHOUT_NOISE = next(ranking for ranking in RANKINGS[Truncation.OFF] if not ranking.uses_noise)

# The same K candidates at every depth: token t has rank t, and K and above are none.
DEPTH, K = 3, 4
DRAFT = np.tile(np.arange(K, dtype=np.int32), (DEPTH, 1))
ranks = st.lists(st.integers(0, K), max_size=DEPTH + 2)


def tree_of(size: int) -> set[tuple[int, ...]]:
    """Every path whose product of (1 + rank) is at most `size`."""
    paths = (path for depth in range(1, DEPTH + 1) for path in product(range(K), repeat=depth))
    return {path for path in paths if prod(1 + rank for rank in path) <= size}


def walk_score(tree: set[tuple[int, ...]], path: list[int]) -> float:
    accepted = 0
    while accepted < len(path) and tuple(path[: accepted + 1]) in tree:
        accepted += 1
    return 1.0 + sum(DEPTH_WEIGHT**depth for depth in range(accepted))


LARGEST = K**DEPTH  # this tree holds every path
TREES = {size: tree_of(size) for size in range(1, LARGEST + 1)}


@settings(deadline=None)
@given(ranks)
def test_the_score_is_a_mean_over_trees_of_all_sizes(path: list[int]) -> None:
    """Of which a share b^−½ have at least size b."""
    mean = sum((size**-0.5 - (size + 1) ** -0.5) * walk_score(TREES[size], path) for size in range(1, LARGEST))
    mean += LARGEST**-0.5 * walk_score(TREES[LARGEST], path)
    assert rank_score(DRAFT, path) == pytest.approx(mean)


@settings(deadline=None)
@given(ranks, st.integers(0, DEPTH), st.integers(0, K))
def test_a_better_rank_never_scores_less_and_more_tokens_neither(path: list[int], depth: int, rank: int) -> None:
    score = rank_score(DRAFT, path)
    assert 1.0 <= score < 1.0 + 1.0 / (1.0 - DEPTH_WEIGHT)
    assert rank_score(DRAFT, path[:depth]) <= score
    if depth < len(path):
        better = [*path[:depth], min(rank, path[depth]), *path[depth + 1 :]]
        assert rank_score(DRAFT, better) >= score


def test_a_draft_without_candidates_scores_least() -> None:
    assert rank_score(np.empty((0, K), np.int32), [1, 2]) == 1.0
    assert rank_score(DRAFT, []) == 1.0


def decode(tuner: RankingTuner, sampling: SamplingParams, hit_rates: dict[bool, float], num_rounds: int) -> float:
    """Rounds in which the first candidate is right at such a rate by whether noise ranks; the share with noise."""
    rng = np.random.default_rng(0)
    with_noise = 0
    for _ in range(num_rounds):
        ranking = tuner.choose(sampling)
        with_noise += ranking.uses_noise
        hits = rng.random(DEPTH) < hit_rates[ranking.uses_noise]
        num_accepted = DEPTH if hits.all() else int(hits.argmin())
        tuner.observe(sampling, ranking, DRAFT, [0] * num_accepted + [K])
    return with_noise / num_rounds


def test_noise_is_used_where_it_pays_and_each_class_learns_for_itself() -> None:
    tuner = RankingTuner()
    warm = SamplingParams(temperature=0.7, top_k=20, top_p=0.8)
    decode(tuner, HOT, {True: 0.6, False: 0.3}, 3_000)
    decode(tuner, warm, {True: 0.3, False: 0.6}, 3_000)
    assert decode(tuner, HOT, {True: 0.6, False: 0.3}, 1_000) > 0.95
    assert decode(tuner, warm, {True: 0.3, False: 0.6}, 1_000) < 0.05
    other = SamplingParams(temperature=0.3)
    assert decode(tuner, other, {True: 0.5, False: 0.5}, 100) > 0.8


def test_greedy_blocks_have_the_default_and_teach_nothing() -> None:
    tuner, greedy = RankingTuner(), SamplingParams()
    before = tuner.as_dict()
    assert {tuner.choose(greedy) for _ in range(200)} == {DEFAULT_RANKING}
    tuner.observe(greedy, WITHOUT_NOISE, DRAFT, [0, 0])
    assert tuner.as_dict() == before


def test_a_ranking_that_is_none_of_those_tried_teaches_nothing() -> None:
    tuner = RankingTuner()
    before = tuner.as_dict()
    tuner.observe(HOT, DraftRanking(truncation_penalty=7.0), DRAFT, [0, 0])
    assert tuner.as_dict() == before


def test_noise_is_the_default_unless_hardly_a_choice_is_left() -> None:
    assert {truncation: rankings[0] for truncation, rankings in RANKINGS.items()} == {
        Truncation.OFF: DEFAULT_RANKING,
        Truncation.MILD: DEFAULT_RANKING,
        Truncation.STRONG: DraftRanking(uses_noise=False),
    }
    assert all(len(set(rankings)) == len(rankings) > 1 for rankings in RANKINGS.values())


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (SamplingParams(temperature=1.0), Truncation.OFF),
        (SamplingParams(temperature=1.0, top_p=0.95), Truncation.MILD),
        (SamplingParams(temperature=1.0, top_k=50), Truncation.MILD),
        (SamplingParams(temperature=1.0, min_p=0.05), Truncation.MILD),
        (SamplingParams(temperature=0.7, top_k=20, top_p=0.8), Truncation.MILD),
        (SamplingParams(temperature=1.0, top_p=0.5), Truncation.STRONG),
        (SamplingParams(temperature=1.0, top_k=1), Truncation.STRONG),
        (SamplingParams(temperature=1.0, min_p=0.4), Truncation.STRONG),
    ],
)
def test_truncations_are_told_apart(sampling: SamplingParams, expected: Truncation) -> None:
    assert Truncation.of(sampling) is expected


def test_every_sampling_has_a_class() -> None:
    tuner = RankingTuner()
    for temperature, top_k, top_p, min_p in product(
        (1e-3, 0.5, 0.9, 1.0, 100.0), (0, 1, 1000), (1e-6, 1.0), (0.0, 1.0)
    ):
        sampling = SamplingParams(temperature, top_k, top_p, min_p)
        tuner.observe(sampling, tuner.choose(sampling), DRAFT, [0])


def test_what_was_learned_can_be_kept() -> None:
    tuner = RankingTuner()
    decode(tuner, HOT, {True: 0.3, False: 0.6}, 3_000)
    again = RankingTuner.from_dict(json.loads(json.dumps(tuner.as_dict())))
    assert again.as_dict() == tuner.as_dict()
    assert decode(again, HOT, {True: 0.3, False: 0.6}, 500) < 0.1


@pytest.mark.parametrize(
    "saved", [{}, [], {"form": 0, "contests": {}}, {"form": 1, "contests": {"off": [{}]}}, {"form": 1}]
)
def test_anything_else_is_refused(saved: object) -> None:
    with pytest.raises(InvalidSettings, match="learned rankings"):
        RankingTuner.from_dict(saved)
