"""Who is drafted for, by the times and gains at hand."""

from __future__ import annotations

import numpy as np

from cluster.requests import LatencyClass
from tests.cluster.speculation_setup import Setup


def test_drafts_that_pay_are_asked_for_and_others_are_not() -> None:
    setup = Setup(4)
    setup.run_plainly(8)
    setup.set_gains(0.0, 0.0, 0.0, 0.0)
    assert setup.choose() == []
    others = [setup.sequence(f"other {i}") for i in range(4)]
    for sequence in others:
        sequence.gain_level = 3.0
    assert set(setup.speculation.choose_drafted(others, others)) == set(others)


def test_a_sequence_whose_drafts_bring_nothing_is_left_out() -> None:
    setup = Setup(4)
    setup.run_plainly(8)
    setup.set_gains(4.0, 0.0, 4.0, 0.0)
    assert set(setup.choose()) == {
        setup.sequences[0],
        setup.sequences[2],
    }


def test_what_does_not_pay_is_tried_again_for_a_small_share_of_the_time() -> None:
    setup = Setup(4)
    setup.set_gains(0.0, 0.0, 0.0, 0.0)
    num_rounds, nums_drafted = 2_000, []
    for _ in range(num_rounds):
        setup.run_plainly(1)
        nums_drafted.append(len(setup.choose()))
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
    assert setup.choose() == setup.sequences[:1]


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
    setup.choose()
    assert not setup.speculation.is_paying


def test_an_interactive_request_is_drafted_for_before_a_batch_one() -> None:
    setup = Setup(2)
    setup.run_plainly(8)
    urgent = setup.sequence("urgent", latency_class=LatencyClass.INTERACTIVE)
    patient = setup.sequence("patient", latency_class=LatencyClass.BATCH)
    for gain in np.linspace(0.0, 4.0, 40):
        urgent.gain_level = patient.gain_level = float(gain)
        setup.speculation.choose_drafted([patient], [patient])  # what was decided of both does not stand any more
        drafted = setup.speculation.choose_drafted([patient, urgent], [patient, urgent])
        assert drafted in ([], [urgent], [urgent, patient])


def test_waiting_pays_for_many_drafts_and_not_for_one() -> None:
    setup = Setup(32)
    setup.run_plainly()
    setup.set_gains(*[2.0] * 32)
    setup.choose()
    assert setup.speculation.is_worth_waiting(setup.sequences, 0.02)
    assert not setup.speculation.is_worth_waiting(setup.sequences[:1], 0.02)


def test_rounds_without_drafts_that_feed_no_drafter_are_run_now_and_then_though_they_pay() -> None:
    setup = Setup(4)
    setup.set_gains(3.0, 3.0, 3.0, 3.0)
    num_rounds, are_plain = 2_000, ""
    for _ in range(num_rounds):
        is_plain = setup.choose() == []
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
