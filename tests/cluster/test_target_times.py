"""What rounds take, all that lies between them included, with one micro-batch and with two."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.router.estimates import ObservedRound
from cluster.router.latency import RoundLoad
from cluster.router.prospects import num_drafts_to_try
from cluster.router.tree_planner import PlannedTrees
from tests.cluster.speculation_setup import NUM_ROUNDS, Setup


def test_all_times_between_rounds_are_those_of_single_numbers_of_drafts() -> None:
    times, num_drafts = Setup(6).speculation.times, num_drafts_to_try(6)
    assert times.all_between_s(num_drafts, 1) == pytest.approx([times.between_s(n, 1) for n in num_drafts.tolist()])
    times._drafting = []
    assert times.all_between_s(num_drafts, 1) == pytest.approx([times.between_s(n, 1) for n in num_drafts.tolist()])


def test_rounds_that_only_release_say_nothing_of_others() -> None:
    setup = Setup(1)
    setup.run_plainly()
    before = setup.speculation.times.overruns(1)
    for _ in range(100):
        setup.speculation.observe_round(
            ObservedRound(RoundLoad(0, 0, 0.0, 0.0), PlannedTrees.roots_only([]), 1e-3, 2e-3, False, 1)
        )
    assert setup.speculation.times.overruns(1) == before


def test_rounds_that_feed_drafters_do_not_tell_what_rounds_take_that_do_not() -> None:
    setup = Setup(4)
    setup.run_plainly()
    setup.speculation._trials._load.has_seen_none = False
    before = setup.speculation.times.overruns(1)
    for feeds in (True, False) * 100:  # after a round that feeds drafters they are still at it
        load, planned = RoundLoad(4, 4, 0.0, 0.0), PlannedTrees.roots_only([7] * 4)
        setup.speculation.observe_round(
            ObservedRound(load, planned, setup.verify_s(4), 1.5 * setup.verify_s(4), feeds, 1)
        )
    assert setup.speculation.times.overruns(1) == before
    assert not setup.speculation._trials._load.has_seen_none
    setup.speculation.observe_round(ObservedRound(load, planned, setup.verify_s(4), 1.5 * setup.verify_s(4), False, 1))
    assert setup.speculation.times.overruns(1) > before
    assert setup.speculation._trials._load.has_seen_none


def test_rows_seem_no_dearer_for_a_processor_that_drafters_share() -> None:
    """Two micro-batches, each of whose rounds takes twice as long as by itself: the contention takes the blame."""
    setup = Setup(8)
    times, load = setup.speculation.times, RoundLoad(4, 4, 0.0, 0.0)
    before = times.verify.seconds(load)
    times.change_to(2)
    for _ in range(NUM_ROUNDS):
        times.observe_round(load, 2.0 * setup.verify_s(4), 2)
    assert times.as_dict()["contention"] == pytest.approx(2.0, rel=0.02)
    assert times.verify.seconds(load) == pytest.approx(before, rel=0.05)
    fixed = RoundLoad(4, 4, 0.0, 0.0)
    one, two = (times.verify_s(8, fixed, 0.0, number) for number in (1, 2))
    np.testing.assert_allclose(two, one * times.as_dict()["contention"])


def test_halves_that_are_faster_than_thought_are_so_in_one_batch_too() -> None:
    """Nothing is seen of one batch meanwhile: believed slower than it is, it would never be run again."""
    setup = Setup(8)
    times, half, all_of_them = setup.speculation.times, RoundLoad(4, 4, 0.0, 0.0), RoundLoad(8, 8, 0.0, 0.0)
    before = times.verify.seconds(all_of_them)
    times.change_to(2)
    for _ in range(NUM_ROUNDS):
        times.observe_round(half, 0.6 * setup.verify_s(4), 2)
    assert times.as_dict()["contention"] == 1.0
    assert times.verify.seconds(half) == pytest.approx(0.6 * setup.verify_s(4), rel=0.05)
    assert times.verify.seconds(all_of_them) < 0.75 * before
