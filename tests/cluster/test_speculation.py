"""Who is drafted for, how many nodes a round gets, whether it is split: by the times and gains at hand."""

from __future__ import annotations

import random

import numpy as np
import pytest

from cluster.requests import GenerationRequest, LatencyClass
from cluster.router import RouterSettings
from cluster.router.latency import DraftTimeModel, RoundLoad
from cluster.router.links import TargetLink
from cluster.router.overrun import Overrun
from cluster.router.prospects import num_drafts_to_try
from cluster.router.sequence import Phase, Sequence
from cluster.router.speculation import Speculation
from cluster.router.splitting import SplitChooser
from cluster.router.tree_planner import PlannedTrees, TreePlanner
from dflash_core.contracts import SamplingParams, SequenceKey
from tests.cluster.simulated_client import Client
from tests.cluster.simulated_drafter import Network
from tests.cluster.simulated_target import SimulatedTarget

NUM_ROUNDS = 200


class Setup:
    """A target whose rounds take 10 ms and 1 ms per row, with `between_s` for drafts, and sequences on it."""

    def __init__(self, num_sequences: int, between_s: float = 5e-3, plain_s: float = 1e-3, **settings: int) -> None:
        target = SimulatedTarget(Network(random.Random(0)))
        self.link = TargetLink(target, 256)
        self.planner = TreePlanner(RouterSettings(**settings))  # type: ignore[arg-type]
        self.speculation = Speculation(self.link, RouterSettings(**settings), self.planner)  # type: ignore[arg-type]
        self.speculation._trials._drafts.seconds = 0.0  # what is set aside to begin with is spent
        self.sequences = [self.sequence(f"s{i}") for i in range(num_sequences)]
        for sequence in self.sequences:
            self.link.sequences[sequence] = None
        for rows in (1, 2, 4, 8, 16, 32, 40) * NUM_ROUNDS:
            self.speculation.times.verify.observe(RoundLoad(rows, 1, 0.0, 0.0), self.verify_s(rows))
        self.speculation.times._drafting = [DraftTimeModel(()), DraftTimeModel(())]
        for _ in range(NUM_ROUNDS):
            self.speculation.times.observe_between(0, plain_s)
            self.speculation.times.observe_between(num_sequences, between_s)

    @staticmethod
    def verify_s(rows: int) -> float:
        return 10e-3 + 1e-3 * rows

    @staticmethod
    def sequence(
        name: str,
        max_tokens: int = 100,
        latency_class: LatencyClass = LatencyClass.STANDARD,
        temperature: float = 0.0,
    ) -> Sequence:
        token_ids = np.array([5, 6, 7], np.int32)
        request = GenerationRequest(
            name, token_ids, 3, max_tokens, SamplingParams(temperature=temperature), latency_class=latency_class
        )
        key = SequenceKey(name, 1)
        return Sequence(
            request, Client(), key, 0.0, token_ids.tolist(), phase=Phase.RUNNING, drafter_knows=True, cached_len=2
        )

    def run_plainly(self, num_rounds: int = NUM_ROUNDS) -> None:
        planned = PlannedTrees.roots_only([7] * len(self.sequences))
        rows = len(self.sequences)
        for _ in range(num_rounds):
            load = RoundLoad(rows, rows, 0.0, 0.0)
            self.speculation.observe_round(load, planned, self.verify_s(rows), self.verify_s(rows) + 1e-3, False, 1)

    def set_gains(self, *gains: float) -> None:
        for sequence, gain in zip(self.sequences, gains, strict=True):
            sequence.gain_level = gain


def test_drafts_that_pay_are_asked_for_and_others_are_not() -> None:
    setup = Setup(4)
    setup.run_plainly(8)
    setup.set_gains(3.0, 3.0, 3.0, 3.0)
    assert set(setup.speculation.choose_drafted(setup.sequences, setup.sequences)) == set(setup.sequences)
    setup.set_gains(0.0, 0.0, 0.0, 0.0)
    assert setup.speculation.choose_drafted(setup.sequences, setup.sequences) == []


def test_what_does_not_pay_is_looked_at_again_in_the_fourth_round() -> None:
    setup = Setup(4)
    setup.run_plainly(8)
    setup.set_gains(0.0, 0.0, 0.0, 0.0)
    assert setup.speculation.choose_drafted(setup.sequences, setup.sequences) == []
    setup.set_gains(3.0, 3.0, 3.0, 3.0)
    newcomer = setup.sequence("newcomer")  # comes and goes under lasting load
    newcomer.gain_level = 3.0
    others = [*setup.sequences[1:], newcomer]
    nums_drafted = [len(setup.speculation.choose_drafted(others, others)) for _ in range(5)]
    assert nums_drafted == [0, 0, 0, 4, 4]


def test_of_two_micro_batches_each_goes_unseen_by_itself() -> None:
    setup = Setup(8)
    setup.run_plainly(8)
    setup.set_gains(*[0.0] * 8)
    halves = [setup.sequences[:4], setup.sequences[4:]]
    for micro_batch, half in enumerate(halves):
        for sequence in half:
            sequence.micro_batch = micro_batch
        assert setup.speculation.choose_drafted(half, half) == []
    setup.set_gains(*[3.0] * 8)
    nums_drafted = [len(setup.speculation.choose_drafted(half, half)) for half in halves * 4]
    assert nums_drafted == [0, 0, 0, 0, 0, 0, 4, 4]


@pytest.mark.parametrize("change", ["sampled", "fewer", "others"])
def test_what_does_not_pay_is_looked_at_again_when_it_may_for_others(change: str) -> None:
    setup = Setup(4)
    setup.run_plainly(8)
    setup.set_gains(0.0, 0.0, 0.0, 0.0)
    assert setup.speculation.choose_drafted(setup.sequences, setup.sequences) == []
    setup.set_gains(3.0, 3.0, 3.0, 3.0)
    if change == "fewer":
        sequences = setup.sequences[:2]
    elif change == "others":
        newcomers = [setup.sequence("newcomer"), setup.sequence("another")]
        for newcomer in newcomers:
            newcomer.gain_level = 3.0
        sequences = [*setup.sequences[:2], *newcomers]
    else:
        newcomer = setup.sequence("newcomer", temperature=1.0)
        newcomer.gain_level = 3.0
        sequences = [*setup.sequences[1:], newcomer]
    assert len(setup.speculation.choose_drafted(sequences, sequences)) == len(sequences)


def test_a_sequence_whose_drafts_bring_nothing_is_left_out() -> None:
    setup = Setup(4)
    setup.run_plainly(8)
    setup.set_gains(4.0, 0.0, 4.0, 0.0)
    assert set(setup.speculation.choose_drafted(setup.sequences, setup.sequences)) == {
        setup.sequences[0],
        setup.sequences[2],
    }


def test_what_does_not_pay_is_tried_again_for_a_small_share_of_the_time() -> None:
    setup = Setup(4)
    setup.set_gains(0.0, 0.0, 0.0, 0.0)
    num_rounds, nums_drafted = 2_000, []
    for _ in range(num_rounds):
        setup.run_plainly(1)
        nums_drafted.append(len(setup.speculation.choose_drafted(setup.sequences, setup.sequences)))
    num_trials = np.count_nonzero(nums_drafted)
    assert num_trials > 0
    drafting_s = 5e-3 - 1e-3
    assert num_trials * drafting_s <= 0.02 * num_rounds * (setup.verify_s(4) + 1e-3)
    runs = "".join(map(str, nums_drafted)).strip("0")
    assert set(runs.replace("0", " ").split()) == {"4444"}, "all of them, in a few rounds in a row"


def test_who_is_about_to_end_is_not_tried() -> None:
    setup = Setup(4)
    setup.run_plainly(2_000)
    setup.set_gains(0.0, 0.0, 0.0, 0.0)
    for sequence in setup.sequences[1:]:
        sequence.num_wanted = 10
    assert setup.speculation.choose_drafted(setup.sequences, setup.sequences) == setup.sequences[:1]


def test_drafts_are_not_wanted_for_a_last_token() -> None:
    setup = Setup(1)
    last = setup.sequence("last", max_tokens=1)
    assert setup.speculation.choose_drafted([last], [last]) == []


def test_a_sequence_that_ends_does_not_say_that_drafts_pay_no_more() -> None:
    """Else the next one's features would not go to the drafter from its first token on."""
    setup = Setup(1, between_s=15e-3)
    setup.run_plainly(8)
    for num_wanted, num_drafted in ((100, 1), (2, 0), (1, 0)):
        sequence = setup.sequence("ending", max_tokens=num_wanted)
        sequence.gain_level = 4.0
        assert len(setup.speculation.choose_drafted([sequence], [sequence])) == num_drafted
        assert setup.speculation.is_paying
    setup.set_gains(0.0)
    setup.speculation.choose_drafted(setup.sequences, setup.sequences)
    assert not setup.speculation.is_paying


def test_an_interactive_request_is_drafted_for_before_a_batch_one() -> None:
    setup = Setup(2)
    setup.run_plainly(8)
    urgent = setup.sequence("urgent", latency_class=LatencyClass.INTERACTIVE)
    patient = setup.sequence("patient", latency_class=LatencyClass.BATCH)
    for gain in np.linspace(0.0, 4.0, 40):
        urgent.gain_level = patient.gain_level = float(gain)
        drafted = setup.speculation.choose_drafted([patient, urgent], [patient, urgent])
        assert drafted in ([], [urgent], [urgent, patient])


def test_waiting_pays_for_many_drafts_and_not_for_one() -> None:
    setup = Setup(32)
    setup.run_plainly()
    setup.set_gains(*[2.0] * 32)
    setup.speculation.choose_drafted(setup.sequences, setup.sequences)
    assert setup.speculation.is_worth_waiting(setup.sequences, 0.02)
    assert not setup.speculation.is_worth_waiting(setup.sequences[:1], 0.02)


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
        setup.speculation.observe_round(RoundLoad(0, 0, 0.0, 0.0), PlannedTrees.roots_only([]), 1e-3, 2e-3, False, 1)
    assert setup.speculation.times.overruns(1) == before


def test_rounds_without_drafts_that_feed_no_drafter_are_run_now_and_then_though_they_pay() -> None:
    setup = Setup(4)
    setup.set_gains(3.0, 3.0, 3.0, 3.0)
    num_rounds, are_plain = 2_000, ""
    for _ in range(num_rounds):
        is_plain = setup.speculation.choose_drafted(setup.sequences, setup.sequences) == []
        assert setup.speculation.stops_feeding == is_plain
        are_plain += str(int(is_plain))
        setup.run_plainly(1)
    found = setup.speculation
    lost = 1.0 - (4 / (setup.verify_s(4) + 1e-3)) / found.rate
    num_plain = are_plain.count("1")
    assert 0 < num_plain * lost * (setup.verify_s(4) + 1e-3) <= 0.006 * num_rounds * (setup.verify_s(4) + 1e-3)
    assert set(are_plain.strip("0").replace("0", " ").split()) == {"1111"}, "a few rounds in a row"
    assert found.is_paying


def test_a_sequence_that_ends_makes_trials_no_more_frequent() -> None:
    """A draft does not pay for the last two tokens of one that is alone: by itself, that is no news of drafts."""

    def num_trials(num_wanted_last: int) -> int:
        setup = Setup(1, between_s=15e-3)
        setup.run_plainly(8)
        found, num_plain = setup.speculation, 0
        for _ in range(200):
            for num_wanted in (100,) * 10 + (num_wanted_last,):
                sequence = setup.sequence("ending", max_tokens=num_wanted)
                sequence.gain_level = 4.0
                is_plain = found.choose_drafted([sequence], [sequence]) == []
                num_plain += is_plain and num_wanted > 2
                setup.run_plainly(1)
        return num_plain

    assert 0 < num_trials(2) <= num_trials(100)


def test_rounds_that_feed_drafters_do_not_tell_what_rounds_take_that_do_not() -> None:
    setup = Setup(4)
    setup.run_plainly()
    before = setup.speculation.times.overruns(1)
    for feeds in (True, False) * 100:  # after a round that feeds drafters they are still at it
        load, planned = RoundLoad(4, 4, 0.0, 0.0), PlannedTrees.roots_only([7] * 4)
        setup.speculation.observe_round(load, planned, setup.verify_s(4), 1.5 * setup.verify_s(4), feeds, 1)
    assert setup.speculation.times.overruns(1) == before
    setup.speculation.observe_round(load, planned, setup.verify_s(4), 1.5 * setup.verify_s(4), False, 1)
    assert setup.speculation.times.overruns(1) > before


def test_an_overrun_is_one_of_mean_times_and_soon_found_after_a_while() -> None:
    overrun = Overrun()
    for factor in (0.8, 1.2) * 100:
        overrun.observe(factor)
    assert overrun.factor == pytest.approx(1.0, abs=0.03)
    overrun.observe(50.0)
    assert overrun.factor < 1.2, "a pause is an outlier"
    for _ in range(100):
        overrun.observe(1.0)
        overrun.pass_by()
    for _ in range(40):
        overrun.pass_by()
    for _ in range(3):
        overrun.observe(1.2)
    assert overrun.factor > 1.1


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


class TestSplitting:
    def choose(self, setup: Setup, num_rounds: int, gain_of_halves: float, chooser: SplitChooser) -> list[int]:
        """Rounds as they would be run, halves at so many times the rate of one batch."""
        chosen = []
        one_s = setup.verify_s(8) + setup.speculation.times._plain_s[0]
        for _ in range(num_rounds):
            num_micro_batches = setup.speculation.times.num_micro_batches
            num = 8 // num_micro_batches
            planned = PlannedTrees.roots_only([7] * num)
            cycle_s = 0.5 * one_s / gain_of_halves if num_micro_batches == 2 else one_s
            load = RoundLoad(num, num, 0.0, 0.0)
            setup.speculation.observe_round(load, planned, setup.verify_s(num), cycle_s, False, num_micro_batches)
            setup.speculation.times.change_to(chooser.choose(setup.link))
            chosen.append(setup.speculation.times.num_micro_batches)
        return chosen

    def test_halves_where_drafting_is_long_and_one_where_it_is_short(self) -> None:
        for between_s, expected in ((15e-3, 2), (1e-3, 1)):
            setup = Setup(8, between_s=between_s, plain_s=between_s)
            assert self.choose(setup, 64, 1.1, SplitChooser(setup.speculation, 2))[-1] == expected

    def test_a_promise_that_is_not_kept_is_given_up_and_tried_again_later(self) -> None:
        setup = Setup(8, between_s=15e-3, plain_s=15e-3)
        setup.set_gains(*[0.0] * 8)
        chooser = SplitChooser(setup.speculation, 2)
        assert self.choose(setup, 16, 0.5, chooser)[-1] == 2
        assert self.choose(setup, 200, 0.5, chooser)[-1] == 1
        later = self.choose(setup, 4_000, 0.5, chooser)
        assert 0.0 < later.count(2) / len(later) < 0.1

    def test_one_where_only_one_is_allowed_or_there_is_one_sequence(self) -> None:
        setup = Setup(8, between_s=15e-3, plain_s=15e-3)
        assert set(self.choose(setup, 64, 1.0, SplitChooser(setup.speculation, 1))) == {1}
        alone = Setup(1, between_s=15e-3, plain_s=15e-3)
        assert set(self.choose(alone, 64, 1.0, SplitChooser(alone.speculation, 2))) == {1}
