"""What was decided about drafts stands for a few rounds, unless others come."""

from __future__ import annotations

import pytest

from tests.cluster.speculation_setup import Setup


def test_what_does_not_pay_is_looked_at_again_in_the_fourth_round() -> None:
    setup = Setup(4)
    setup.run_plainly(8)
    setup.set_gains(0.0, 0.0, 0.0, 0.0)
    assert setup.choose() == []
    setup.set_gains(3.0, 3.0, 3.0, 3.0)
    newcomer = setup.sequence("newcomer")  # comes and goes under lasting load
    newcomer.gain_level = 3.0
    others = [*setup.sequences[1:], newcomer]
    nums_drafted = [len(setup.speculation.choose_drafted(others, others)) for _ in range(5)]
    assert nums_drafted == [0, 0, 0, 4, 4]


def test_of_two_micro_batches_each_has_a_decision_of_its_own() -> None:
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
    assert setup.choose() == []
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


def test_who_is_drafted_for_stays_for_three_more_rounds() -> None:
    setup = Setup(4)
    setup.set_gains(3.0, 3.0, 0.0, 0.0)
    drafted = setup.choose()
    assert set(drafted) == set(setup.sequences[:2])
    promise = setup.speculation.promise
    assert promise is not None
    setup.set_gains(0.0, 0.0, 3.0, 3.0)
    for _ in range(3):
        assert setup.choose() == drafted
        assert setup.speculation.promise is promise
    assert set(setup.choose()) == set(setup.sequences[2:])


@pytest.mark.parametrize("change", ["ended", "came", "runs", "late"])
def test_who_is_drafted_for_is_decided_anew_as_soon_as_anybody_comes_or_goes(change: str) -> None:
    setup = Setup(4)
    setup.set_gains(3.0, 3.0, 0.0, 0.0)
    assert set(setup.choose()) == set(setup.sequences[:2])
    setup.set_gains(0.0, 3.0, 3.0, 0.0)
    newcomer = setup.sequence("newcomer")
    others = {"ended": setup.sequences[:3], "came": [*setup.sequences, newcomer], "late": setup.sequences[1:]}
    ready = others.get(change, setup.sequences)  # "late": the first one's draft is on its way still
    running = {"late": setup.sequences, "runs": [*setup.sequences, newcomer]}.get(change, ready)
    assert setup.sequences[0] not in setup.speculation.choose_drafted(ready, running)


def test_who_is_to_be_fed_first_is_decided_about_again_in_the_next_round() -> None:
    """What drafts are to bring is promised of those alone that can be drafted for at once."""
    setup = Setup(2)
    setup.set_gains(3.0, 3.0)
    setup.sequences[1].drafter_knows = False
    assert len(setup.choose()) == 2
    setup.sequences[1].drafter_knows = True
    setup.set_gains(3.0, 0.0)
    assert setup.choose() == setup.sequences[:1]


def test_who_is_about_to_end_is_decided_about_in_every_round() -> None:
    setup = Setup(2)
    setup.set_gains(3.0, 3.0)
    assert len(setup.choose()) == 2
    setup.sequences[0].num_wanted = 1
    assert setup.choose() == setup.sequences[1:]


def test_of_two_micro_batches_each_has_a_rate_of_its_own() -> None:
    setup = Setup(8)
    halves = [setup.sequences[:4], setup.sequences[4:]]
    setup.set_gains(*[3.0] * 4, *[0.0] * 4)
    rates = []
    for micro_batch, half in enumerate(halves * 2):
        for sequence in half:
            sequence.micro_batch = micro_batch % 2
        setup.speculation.choose_drafted(half, half)
        rates.append(setup.speculation.rate)
    assert rates[0] > 1.2 * rates[1]
    assert rates[2:] == rates[:2]


def test_who_is_ready_first_is_looked_at() -> None:
    setup = Setup(4)
    setup.set_gains(3.0, 3.0, 3.0, 3.0)
    assert setup.speculation.choose_drafted([], setup.sequences) == []
    assert len(setup.choose()) == 4


def test_a_fixed_budget_drafts_for_all_who_are_there() -> None:
    setup = Setup(4, tree_budget=8)
    assert setup.choose() == setup.sequences
    assert setup.choose() == setup.sequences
    ending, others = setup.sequences[0], setup.sequences[1:]
    ending.num_wanted = 1
    assert setup.choose() == others
