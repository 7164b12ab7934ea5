"""Rounds that go against what is thought to pay, to see whether it is so: a little of the time is saved up for them.

What is not done is not seen any more, and whatever is believed of it stays so, true or not. Trials that change nothing
make further ones rarer; at another load, or once one has changed something, they are as frequent as at first. What
changes by itself does not count: where drafts pay now and then, both ways are seen without trials.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.router.prospects import Prospects

Doubles = npt.NDArray[np.float64]

TRIAL_NODES = 2  # of a tree at least: without nodes a draft shows nothing
_MOST_S = 1.0  # saved up at most, and no trial counts as dearer
# Of a trial of drafts where none are thought to pay. One sequence's draft in one round says little of what drafts for
# all of them would bring, and less of what they would take: drafters take hardly longer for many than for one.
_ROUNDS_OF_TRIAL = 4
# Of a trial without drafts. What it is to show is how fast the target is when it feeds no drafters: in the first of its
# rounds they are still at what the round before has sent, and after the last they are to catch up in a further one.
_PLAIN_ROUNDS_OF_TRIAL = 4
# Of a round's time, what each of these costs at least, however little is thought to be lost by it: where drafts are
# thought to be barely better, nearly all rounds would be such.
_LEAST_LOST = 0.15
# By how much less likely a trial is to change anything the slower that way is thought to be: no error of the models
# that was seen made one of two ways seem twice as fast. What drafts bring changes with every text, and what rounds take
# is off by a third where none of the kind was seen (18 ms, thought to be 25, of eight sequences without drafts, after
# five thousand rounds with). What is known of rounds without drafts from such rounds hardly changes.
_POWER, _POWER_OF_SEEN = 2.0, 8.0
# After a trial, in which what it has shown is learned: a change in these is its doing.
_ROUNDS_OF_LEARNING = 4


@dataclass(slots=True)
class _Savings:
    """Of the time, for one kind of trial: the first and the least share of it."""

    first_share: float
    least_share: float
    seconds: float = 0.0  # set aside and not used yet

    def save(self, taken_up_s: float, num_in_vain: int) -> None:
        share = max(self.first_share / (1 + num_in_vain), self.least_share)
        self.seconds = min(self.seconds + share * taken_up_s, _MOST_S)

    def spend(self, cost_s: float) -> bool:
        """Whether a trial is paid for: then it begins. A full purse pays for any."""
        cost_s = min(cost_s, _MOST_S)
        if self.seconds < cost_s:
            return False
        self.seconds -= cost_s
        return True


@dataclass(slots=True)
class _Load:
    """What is known of rounds of about so many sequences."""

    drafts_pay: bool = False
    drafts_in_vain: int = 0  # trials of drafts since one has changed that
    none_in_vain: int = 0  # the same of trials without drafts
    has_seen_none: bool = False  # what rounds without drafts take

    def change(self, is_by_trial: bool) -> None:
        """Drafts have come to pay, or pay no more."""
        if is_by_trial and self.drafts_pay:
            self.none_in_vain = 0
        elif is_by_trial:
            self.drafts_in_vain = 0
        self.drafts_pay = not self.drafts_pay


class Trials:
    """Of one target."""

    def __init__(self) -> None:
        # Each is saved up for only while it may be needed: else a time in which drafts pay would fill the purse, and
        # the next one, in which they do not, would be trial after trial until that is spent.
        self._drafts = _Savings(0.015, 0.005, seconds=0.25)  # where no draft is thought to pay
        self._further = _Savings(0.015, 0.005)  # drafts, beside those that pay
        self._none = _Savings(0.02, 0.005)  # rounds without drafts, where these pay
        self._num_rounds_left, self._num_tried = 0, 0  # of the trial of drafts that is under way
        self._num_plain_rounds_left = 0  # of one without
        self._loads: dict[int, _Load] = {}  # by the power of two
        self._load = _Load()  # the last round's
        self._num_since_trial = _ROUNDS_OF_LEARNING + 1  # rounds

    def save(self, taken_up_s: float) -> None:
        """A round has taken so long."""
        self._num_since_trial += 1
        load = self._load
        if load.drafts_pay:
            self._further.save(taken_up_s, 0)
            self._none.save(taken_up_s, load.none_in_vain)
        else:
            self._drafts.save(taken_up_s, load.drafts_in_vain)

    def see_none(self) -> None:
        """What rounds without drafts take was learned from one."""
        self._load.has_seen_none = True

    @property
    def is_being_learned(self) -> bool:
        """What the last one has shown."""
        return self._num_since_trial <= _ROUNDS_OF_LEARNING

    def begin(self, num_sequences: int, drafts_pay: bool) -> None:
        """A round of so many sequences is to be decided about; whether drafts pay, as far as known."""
        self._load = load = self._loads.setdefault(num_sequences.bit_length(), _Load())
        if load.drafts_pay != drafts_pay:
            load.change(self.is_being_learned)

    def of_none(self, found: Prospects, best: int) -> bool:
        """Whether a round goes without drafts though they pay (`best` > 0): a few in a row, which feed no drafters.
        What these take is otherwise not seen any more, and whatever slows down rounds with drafts would seem to slow
        down all. The less is thought to be lost by it, the more often it is tried, but for a least cost."""
        self._num_rounds_left = 0
        if self._num_plain_rounds_left == 0:
            rates = found.rates
            lost_s = float(found.seconds[0]) * max(1.0 - float(rates[0] / rates[best]), _LEAST_LOST)
            power = _POWER_OF_SEEN if self._load.has_seen_none else _POWER
            cost_s = (_PLAIN_ROUNDS_OF_TRIAL + 1) * lost_s * _doubt(rates[best], rates[0], power)
            if not self._none.spend(cost_s):
                return False
            # What was saved while trials were dear pays for one: where they are cheap it would for many, one after the
            # other. Of trials of drafts the next one has other texts to try, and what is left may pay for it.
            self._none.seconds = 0.0
            self._load.none_in_vain += 1
            self._num_plain_rounds_left = _PLAIN_ROUNDS_OF_TRIAL
        self._num_plain_rounds_left -= 1
        self._num_since_trial = 0
        return True

    def of_further(self, found: Prospects, best: int, catch_up_s: Doubles, row_s: float) -> int:
        """How many sequences get a draft beside those for which it pays: as many as the time set aside pays for.

        They cost what is thought to be lost by them, and drafts and nodes in any case, since it is for want of trust in
        what is thought that they are made; and that drafters are sent what they have not been sent before.

        Args:
            catch_up_s: `[further sequences + 1]`, for the first so many of them.
            row_s: of the target's time.
        """
        num_tried = found.num_drafts[best:] - found.num_drafts[best]
        costs = _cost_s(found, best, row_s) + catch_up_s[num_tried]
        affordable = int(np.flatnonzero(costs <= self._further.seconds)[-1])
        self._further.seconds -= float(costs[affordable])
        return int(num_tried[affordable])

    def of_drafts(self, found: Prospects, most: int, catch_up_s: Doubles, row_s: float) -> int:
        """How many of `most` sequences get a draft where it is thought to pay for none: in each of a few rounds in a
        row, as many as can ever be paid for, as soon as they can. Other arguments as of `of_further`."""
        self._num_plain_rounds_left = 0
        if most == 0:
            return 0
        if self._num_rounds_left == 0:
            num_drafts = found.num_drafts[found.num_drafts <= most]
            costs = _ROUNDS_OF_TRIAL * _cost_s(found, 0, row_s)[: len(num_drafts)] + catch_up_s[num_drafts]
            chosen = max(1, int(np.flatnonzero(costs <= _MOST_S)[-1]))
            rates = found.rates
            if not self._drafts.spend(float(costs[chosen]) * _doubt(rates[0], rates[1:].max(), _POWER)):
                return 0
            self._load.drafts_in_vain += 1
            self._num_tried = int(num_drafts[chosen])
            self._num_rounds_left = _ROUNDS_OF_TRIAL + (catch_up_s[self._num_tried] > 0.0)
        self._num_rounds_left -= 1
        self._num_since_trial = 0
        return self._num_tried


def _doubt(rate: float, other: float, power: float) -> float:
    """As how many times dearer a trial of the other way counts, the less likely it is to change anything."""
    times: float = max(float(rate / other), 1.0) ** power
    return times


def _cost_s(found: Prospects, best: int, row_s: float) -> Doubles:
    """Of one round with as many drafts as `found` has from `best` on; what the drafters lack is not among it."""
    rate = found.rates[best]
    lost_s = (found.seconds - found.seconds[best]) - (found.tokens - found.tokens[best]) / rate
    costs: Doubles = np.maximum(lost_s, found.between_s - found.between_s[best])
    costs += (found.num_drafts - found.num_drafts[best]) * TRIAL_NODES * row_s
    return costs[best:]
