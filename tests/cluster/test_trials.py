"""How much of the time goes into rounds against what is thought to pay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cluster.router.prospects import Prospects, num_drafts_to_try
from cluster.router.trials import Trials

PLAIN_S, DRAFTED_S = 10e-3, 20e-3


def _found(times_faster: float, num_sequences: int = 4) -> Prospects:
    """All drafted for, a round takes twice as long and brings so many times as many tokens a second."""
    num_drafts = num_drafts_to_try(num_sequences)
    seconds = np.where(num_drafts == 0, PLAIN_S, DRAFTED_S)
    gain = num_sequences * (times_faster * DRAFTED_S / PLAIN_S - 1.0)
    tokens = num_sequences + gain * num_drafts / num_sequences
    return Prospects(num_drafts, tokens, seconds, np.where(num_drafts == 0, 1e-3, 5e-3))


def _rounds_of_drafts(trials: Trials, num_rounds: int, num_sequences: int = 4, times_faster: float = 0.8) -> list[bool]:
    """Rounds in which none are thought to pay: which of them had drafts."""
    found, had_drafts = _found(times_faster, num_sequences), []
    for _ in range(num_rounds):
        trials.begin(num_sequences, drafts_pay=False)
        catch_up_s = np.zeros(num_sequences + 1)
        had_drafts.append(trials.of_drafts(found, num_sequences, catch_up_s, row_s=0.0) > 0)
        trials.save(PLAIN_S)
    return had_drafts


def _rounds_of_none(trials: Trials, num_rounds: int, times_faster: float, slower: float = 1.0) -> list[bool]:
    """Rounds in which all pay: which of them had no drafts. `slower`: so many times as long do all rounds take."""
    found, had_none = _found(times_faster), []
    found = replace(found, seconds=found.seconds * slower, between_s=found.between_s * slower)
    for _ in range(num_rounds):
        trials.begin(4, drafts_pay=True)
        had_none.append(trials.of_none(found, len(found.num_drafts) - 1))
        if had_none[-1]:
            trials.see_none()
        trials.save(slower * (PLAIN_S if had_none[-1] else DRAFTED_S))
    return had_none


def _trials() -> Trials:
    """What is set aside to begin with is spent."""
    trials = Trials()
    trials._drafts.seconds = 0.0
    return trials


def _rounds_between(trials: Trials, num_sequences: int = 4) -> int:
    """How long it takes to save up for the next trial of drafts."""
    trials._drafts.seconds, trials._num_rounds_left = 0.0, 0
    return _rounds_of_drafts(trials, 2_000, num_sequences).index(True)


def test_trials_of_drafts_grow_rare_while_they_change_nothing() -> None:
    trials = _trials()
    first, later, last = (sum(_rounds_of_drafts(trials, 4_000)) for _ in range(3))
    assert first >= later >= last > 0
    lost_s = DRAFTED_S - PLAIN_S * 0.8 * DRAFTED_S / PLAIN_S
    assert last * lost_s <= 0.005 * 4_000 * PLAIN_S


def test_they_are_as_frequent_as_at_first_once_one_has_changed_something_and_at_another_load() -> None:
    trials = _trials()
    at_first = _rounds_between(trials)
    _rounds_of_drafts(trials, 8_000)
    assert _rounds_between(trials) == pytest.approx(3 * at_first, rel=0.02)
    assert _rounds_between(trials, num_sequences=5) > 2 * at_first, "about as many"
    at_first_of_more = _rounds_between(_trials(), num_sequences=32)
    assert _rounds_between(trials, num_sequences=32) == at_first_of_more
    trials.begin(4, drafts_pay=True)
    assert _rounds_between(trials) == pytest.approx(3 * at_first, rel=0.02), "nobody has tried it"
    while not _rounds_of_drafts(trials, 1)[0]:
        pass
    trials.begin(4, drafts_pay=True)
    assert _rounds_between(trials) == at_first


def test_where_drafts_pay_now_and_then_rounds_without_are_tried_as_rarely_as_where_they_always_do() -> None:
    def num_trials(pay_by_turns: bool) -> int:
        trials, found, num_tried = _trials(), _found(1.1), 0
        for number in range(20_000):
            pay = not pay_by_turns or number % 50 < 40
            trials.begin(4, drafts_pay=pay)
            num_tried += pay and trials.of_none(found, len(found.num_drafts) - 1)
            trials.save(DRAFTED_S)
        return num_tried

    assert 0 < num_trials(pay_by_turns=True) <= 1.5 * num_trials(pay_by_turns=False)


def test_what_is_nearly_as_fast_is_tried_more_often_than_what_is_far_from_it() -> None:
    near, far = (sum(_rounds_of_drafts(_trials(), 8_000, times_faster=times)) for times in (0.95, 0.5))
    assert near > 4 * far > 0


def test_the_first_trials_without_drafts_come_soon_and_grow_rare() -> None:
    trials = Trials()
    first, *_, last = (sum(_rounds_of_none(trials, 1_000, 1.2)) for _ in range(6))
    assert first > last > 0
    had_none = _rounds_of_none(Trials(), 100, 1.2)
    assert True in had_none
    start = had_none.index(True)
    assert had_none[start : start + 5] == [True] * 4 + [False], "a few in a row"


def test_what_is_twice_as_fast_is_hardly_ever_doubted() -> None:
    near, far = (sum(_rounds_of_none(Trials(), 5_000, times_faster)) for times_faster in (1.1, 2.3))
    assert near > 20 * far > 0
    cost_s = far * PLAIN_S * (1.0 - 1.0 / 2.3)
    assert cost_s < 0.002 * 5_000 * DRAFTED_S


def test_what_is_hardly_slower_is_tried_seldom_too() -> None:
    barely, rather = (sum(_rounds_of_none(Trials(), 5_000, times_faster)) for times_faster in (1.001, 1.1))
    assert rather <= barely <= 2.5 * rather
    assert barely * PLAIN_S < 0.03 * 5_000 * DRAFTED_S


def test_after_a_time_without_drafts_rounds_without_them_are_no_more_frequent() -> None:
    trials = _trials()
    _rounds_of_drafts(trials, 20_000)
    after, fresh = (_rounds_of_none(each, 200, 1.1) for each in (trials, Trials()))
    assert 0 < sum(after) <= sum(fresh)


def test_of_a_load_at_which_no_rounds_without_drafts_were_seen_some_are_seen_soon() -> None:
    trials = Trials()
    first, later = _rounds_of_none(trials, 1_000, 1.3), _rounds_of_none(trials, 10_000, 1.3)
    num_later_trials = sum(later) / 4
    assert 10 * first.index(True) < 10_000 / num_later_trials
    trials = _trials()
    _rounds_of_drafts(trials, 100)
    assert _rounds_of_none(trials, 200, 1.3).index(True) == first.index(True), "nothing was learned from those"
    trials = _trials()
    _rounds_of_drafts(trials, 1)
    trials.see_none()
    assert True not in _rounds_of_none(trials, 200, 1.3), "they were"


def test_what_was_saved_while_trials_were_dear_does_not_pay_for_one_after_the_other() -> None:
    trials = Trials()
    _rounds_of_none(trials, 200, 1.1)
    _rounds_of_none(trials, 20_000, 2.3)
    had_none = _rounds_of_none(trials, 40, 1.001)
    assert 4 <= sum(had_none) <= 12
    assert not any(all(had_none[start : start + 5]) for start in range(36))


def test_after_a_time_in_which_drafts_pay_they_are_tried_no_more_than_else() -> None:
    trials = _trials()
    _rounds_of_none(trials, 20_000, 1.2)
    after, fresh = (_rounds_of_drafts(each, 1_000) for each in (trials, _trials()))
    assert after == fresh
    assert True in fresh


def test_of_a_target_whose_rounds_take_seconds_too_something_is_tried() -> None:
    assert any(_rounds_of_none(Trials(), 2_000, 2.3, slower=500.0))
