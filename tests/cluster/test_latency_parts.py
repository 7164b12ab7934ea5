"""The parts of the latency model against slow oracles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.router.latency import RoundLoad
from cluster.router.latency.monotone import non_decreasing
from cluster.router.latency.robust_filter import RobustFilter
from dflash_core.contracts import (
    DraftTree,
    Outcome,
    OutcomeStatus,
    Prefill,
    RoundRequest,
    RoundResult,
    SamplingParams,
    SequenceKey,
    TreeRows,
)

OK = OutcomeStatus.OK
NO_TOKENS = np.empty(0, np.int32)

_ANYTHING = np.full(3, -np.inf)  # of a state's least


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(1, 9)), min_size=1, max_size=12))
def test_the_nearest_non_decreasing_sequence(points: list[tuple[int, int]]) -> None:
    """Against its closed form: the largest over starts of the smallest over ends of the mean in between."""
    values, weights = (np.array(column, np.float64) for column in zip(*points, strict=True))
    count = len(points)
    expected = [
        max(
            min(np.average(values[i : k + 1], weights=weights[i : k + 1]) for k in range(place, count))
            for i in range(place + 1)
        )
        for place in range(count)
    ]
    assert non_decreasing(values, weights).tolist() == pytest.approx(expected)


def test_the_filter_is_the_textbook_s_with_inverses() -> None:
    """In the information form; the noise and the drift of each step is what the filter held before it."""
    rng = np.random.default_rng(0)
    truth = np.array([0.3, -0.2, 0.5])
    change = np.diag([1.0, 0.25, 0.04]) + 0.05
    found = RobustFilter(np.zeros(3), np.diag([1.0, 2.0, 0.5]), _ANYTHING[:3])
    mean, covariance = found.mean.copy(), found.covariance.copy()
    for _ in range(30):
        row = rng.uniform(0.1, 1.0, 3)
        deviation = float(row @ truth + 0.02 * rng.standard_normal() - row @ mean)
        noise = found.noise
        found.observe(row, deviation, change)
        direction = change @ row / (row @ change @ row)
        prior = np.linalg.inv(covariance + (0.05 * noise) ** 2 * np.outer(direction, direction))
        covariance = np.linalg.inv(prior + np.outer(row, row) / noise**2)
        mean = mean + covariance @ row * deviation / noise**2
        np.testing.assert_allclose(found.mean, mean, rtol=1e-7)
        np.testing.assert_allclose(found.covariance, covariance, rtol=1e-7)
    assert found.num_ignored == 0
    np.testing.assert_allclose(found.mean, truth, atol=0.05)


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_the_fifth_outlier_of_ten_on_a_side_is_believed(side: float) -> None:
    one = np.ones(1)
    found = RobustFilter(np.zeros(1), np.full((1, 1), 1e-4), _ANYTHING[:1])
    for index in range(8):
        assert found.mean[0] == 0.0
        found.observe(one, 0.0 if index % 2 else side * (2.0 + index), np.eye(1))
    assert found.num_ignored == 4
    found.observe(one, side * 100.0, np.eye(1))
    assert found.mean[0] == pytest.approx(side * 6.0, rel=0.02)  # the median of 2, 4, 6, 8 and 100


def test_the_state_never_falls_below_its_least() -> None:
    found = RobustFilter(np.array([0.5, 0.5]), np.eye(2), np.array([0.0, -np.inf]))
    for _ in range(50):
        found.observe(np.ones(2), -0.1 - found.mean.sum(), np.eye(2))
        assert found.mean[0] >= 0.0
    np.testing.assert_allclose(found.mean.sum(), -0.1, atol=0.01)


def test_outliers_on_both_sides_are_not_believed() -> None:
    found = RobustFilter(np.zeros(1), np.full((1, 1), 1e-4), _ANYTHING[:1])
    for index in range(10):
        found.observe(np.ones(1), (0.0, 5.0, -5.0)[index % 3], np.eye(1))
    assert found.mean[0] == 0.0


def test_the_uncertainty_of_what_is_not_observed_does_not_grow() -> None:
    found = RobustFilter(np.zeros(2), np.eye(2), _ANYTHING[:2])
    for _ in range(500):
        found.observe(np.array([1.0, 0.0]), 0.01, np.eye(2))
    assert found.covariance[1, 1] == 1.0
    assert found.covariance[0, 0] < 0.01


def _prefill(name: str, start: int, count: int, following: int = 0) -> Prefill:
    tokens, rest = np.zeros(count, np.int32), np.zeros(following, np.int32)
    return Prefill(SequenceKey(name, 0), tokens, start, not following, 1, SamplingParams(), following=rest)


def _tree(name: str, position: int, rows: int) -> TreeRows:
    return TreeRows(SequenceKey(name, 0), position, DraftTree(np.zeros(rows, np.int32), np.zeros(rows, np.int32)))


def _load_row_by_row(pieces: list[tuple[list[int], int]], has_nodes: bool = True) -> RoundLoad:
    """`pieces`: each row's context, and the context before the sequence's rows."""
    return RoundLoad(
        sum(len(rows) for rows, _ in pieces),
        len(pieces),
        sum(before for _, before in pieces),
        sum(sum(rows) for rows, _ in pieces),
        has_nodes,
    )


def test_the_load_of_a_planned_round() -> None:
    load = RoundLoad.planned([_prefill("a", 3, 4), _prefill("b", 0, 2)], [_tree("c", 9, 3), _tree("d", 5, 1)])
    assert load == _load_row_by_row([([3, 4, 5, 6], 3), ([0, 1], 0), ([9, 9, 9], 9), ([5], 5)])
    assert RoundLoad.planned([], []) == RoundLoad(0, 0, 0, 0)
    roots = [_tree("c", 9, 1), _tree("d", 5, 1)]
    assert RoundLoad.planned([], roots) == _load_row_by_row([([9], 9), ([5], 5)], has_nodes=False)


def test_the_load_of_a_round_that_is_done_has_neither_hits_nor_refusals() -> None:
    prefills = (_prefill("a", 0, 4, following=7), _prefill("b", 8, 5))
    trees = (_tree("c", 9, 3), _tree("d", 5, 2))

    def outcome(name: str, status: OutcomeStatus = OK, hits: int = 0) -> Outcome:
        return Outcome(SequenceKey(name, 0), status, NO_TOKENS, 1, 0, num_hit_tokens=hits)

    outcomes = (outcome("a", hits=8), outcome("b"), outcome("c", OutcomeStatus.MISMATCH), outcome("d"))
    request = RoundRequest(1, prefills=prefills, trees=trees)
    load = RoundLoad.done(request, RoundResult(1, outcomes, 0, 0))
    assert load == _load_row_by_row([([8, 9, 10], 8), ([8, 9, 10, 11, 12], 8), ([5, 5], 5)])
