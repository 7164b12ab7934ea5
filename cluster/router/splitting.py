"""Whether a target's sequences are better run as one batch or as two halves that take turns."""

from __future__ import annotations

from cluster.router.links import TargetLink
from cluster.router.speculation import Speculation

_EVERY_ROUNDS = 12  # more than it takes to see contention
_LEAST_SEQUENCES = 2
_ADVANTAGE = 1.05  # that two halves must promise at least, so that the choice does not flicker
_FORGETTING = 0.9995  # per round: that a promise was not kept is less and less believed, and at last tried again
# What halves must promise to be tried where nothing, or nothing of late, was seen of them: a few rounds show what they
# take, and the promise is a pessimist's. One batch picks those to draft for from twice as many, by levels that are
# noisy, and whoever picks the best of noisy ones is disappointed.
_WORTH_A_TRIAL, _OF_LATE = 0.85, 0.5  # the latter a belief: about 1,400 rounds


class SplitChooser:
    """By the latency model: one batch takes `verify + between` for all, two halves the longer of twice half a batch's
    verify and half a batch's `verify + between`.
    """

    def __init__(self, speculation: Speculation, most: int) -> None:
        self._speculation = speculation
        self._most = most
        self._num_rounds = 0
        self._belief = 0.0  # in what was seen of two halves, 0 … 1

    def choose(self, link: TargetLink) -> int:
        """1 or 2, called between any two rounds."""
        speculation = self._speculation
        if self._most == 1 or len(link.sequences) < _LEAST_SEQUENCES:
            return 1
        is_split = speculation.times.num_micro_batches == 2
        self._belief = 1.0 if is_split else self._belief * _FORGETTING
        self._num_rounds += 1
        if self._num_rounds % _EVERY_ROUNDS:
            return speculation.times.num_micro_batches
        least = 1.0 if is_split else _ADVANTAGE if self._belief > _OF_LATE else _WORTH_A_TRIAL
        return 2 if speculation.advantage_of_halves(self._belief) > least else 1
