"""Which way pays: the lead passes on evidence, trying others costs little, and harder work for all moves nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from cluster.router.contest import FIRST_TRIALS, LEAST_TRIALS, TRIAL_COST, Contest
from dflash_core.errors import InvalidSettings

DEVIATION = 0.6  # of one score; a level of 2 and this are about those of drafts


def run(
    contest: Contest, level: Callable[[int, int], float], num_choices: int, seed: int = 0
) -> tuple[float, np.ndarray]:
    """Plays choices whose scores scatter around `level(arm, choice)`.

    Returns: the mean of the levels that were chosen, and how often each arm was.
    """
    rng, draw = np.random.default_rng(seed), random.Random(seed).random
    scatter = rng.normal(scale=DEVIATION, size=num_choices)
    total, counts = 0.0, np.zeros(len(contest.arms), int)
    for choice in range(num_choices):
        arm = contest.choose(draw)
        counts[arm] += 1
        total += level(arm, choice)
        contest.observe(arm, level(arm, choice) + scatter[choice])
    return total / num_choices, counts


def fixed(levels: Sequence[float]) -> Callable[[int, int], float]:
    return lambda arm, _: levels[arm]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("gain", [0.15, 0.5])
def test_a_better_arm_comes_to_lead(gain: float, seed: int) -> None:
    contest = Contest.between(3)
    run(contest, fixed([2.0, 2.0, 2.0 + gain]), 20_000, seed)
    assert contest.leader == 2
    mean, _ = run(contest, fixed([2.0, 2.0, 2.0 + gain]), 5_000, seed + 10)
    assert mean > 2.0 + 0.9 * gain


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("levels", [[2.0, 1.2], [2.0, 1.9, 1.0], [2.0, 2.0, 2.0, 1.5]])
def test_a_good_default_costs_next_to_nothing(levels: list[float], seed: int) -> None:
    """What the trials of each challenger may cost, and some tens before it is known to be bad."""
    contest, num_choices = Contest.between(len(levels)), 20_000
    mean, _ = run(contest, fixed(levels), num_choices, seed)
    may_cost = sum(1.5 * TRIAL_COST * levels[0] * num_choices + 60 * (levels[0] - level) for level in levels[1:])
    assert (levels[0] - mean) * num_choices < may_cost


@pytest.mark.parametrize(("num_observed", "share"), [(0, FIRST_TRIALS), (10**6, LEAST_TRIALS)])
def test_trials_grow_rare_but_never_end(num_observed: int, share: float) -> None:
    contest, draw = Contest.between(3), random.Random(0).random
    contest.num_observed = num_observed
    counts = np.bincount([contest.choose(draw) for _ in range(20_000)], minlength=3)
    assert counts[1:] / 20_000 == pytest.approx([share / 2] * 2, rel=0.2)


def test_a_bad_arm_is_tried_as_rarely_as_it_is_bad() -> None:
    contest = Contest.between(2)
    run(contest, fixed([2.0, 1.0]), 5_000)
    _, counts = run(contest, fixed([2.0, 1.0]), 50_000, seed=1)
    assert 0 < counts[1] / 50_000 < 2 * TRIAL_COST * 2.0 / 1.0


def test_the_lead_follows_a_change_and_returns() -> None:
    contest = Contest.between(2)
    run(contest, fixed([2.0, 1.8]), 10_000)
    assert contest.leader == 0
    run(contest, fixed([2.0, 2.6]), 40_000, seed=1)
    assert contest.leader == 1
    run(contest, fixed([2.0, 1.8]), 40_000, seed=2)
    assert contest.leader == 0


@pytest.mark.parametrize("seed", range(3))
def test_harder_work_for_all_moves_nothing(seed: int) -> None:
    """A level that falls and rises by more than the arms differ: an arm remembered from better times would lead."""

    def level(arm: int, choice: int) -> float:
        return (2.5 if choice // 4000 % 2 else 1.6) - 0.15 * arm

    contest = Contest.between(3)
    mean, counts = run(contest, level, 40_000, seed)
    assert contest.leader == 0
    assert counts[0] > 0.95 * 40_000
    assert mean > 2.05 * 0.995


def test_nothing_is_learned_before_the_leader_is_known() -> None:
    contest = Contest.between(2)
    for _ in range(100):
        contest.observe(1, 5.0)
    assert contest.leader == 0
    assert contest.arms[1].count == 0


def test_one_arm_leads_for_ever() -> None:
    contest = Contest.between(1)
    mean, counts = run(contest, fixed([2.0]), 1_000)
    assert (mean, counts.tolist()) == (pytest.approx(2.0), [1_000])


def test_what_was_learned_can_be_kept() -> None:
    contest = Contest.between(3)
    run(contest, fixed([2.0, 2.5, 1.5]), 5_000)
    again = Contest.from_dict(json.loads(json.dumps(contest.as_dict())), 3)
    assert again == contest
    assert run(again, fixed([2.0, 2.5, 1.5]), 1_000)[0] == run(contest, fixed([2.0, 2.5, 1.5]), 1_000)[0]


@pytest.mark.parametrize(
    "change",
    [
        {"leader": 3},
        {"leader": -1},
        {"num_observed": float("nan")},
        {"arms": []},
        {"arms": [{"count": 1.0, "mean": 0.0, "variance": 0.0, "recent": 0.0}] * 2},
        {"level": {"count": -1.0, "mean": 0.0, "variance": 0.0, "recent": 0.0}},
        {"more": 1},
    ],
)
def test_anything_else_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidSettings, match="learned contest"):
        Contest.from_dict(Contest.between(3).as_dict() | change, 3)
