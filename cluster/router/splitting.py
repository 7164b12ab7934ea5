"""Whether a target's sequences are better run as one batch or as two halves that take turns."""

from __future__ import annotations

from cluster.router.links import TargetLink
from cluster.router.speculation import Speculation

_EVERY_ROUNDS = 16
_LEAST_SEQUENCES = 2
_ADVANTAGE = 1.05  # that two halves must promise at least, so that the choice does not flicker
_FORGETTING = 0.998  # per round: that a promise was not kept is less and less believed, and at last tried again


class SplitChooser:
    """By the latency model: one batch takes `verify + between` for all, two halves the longer of twice half a batch's
    verify and half a batch's `verify + between`. What the model does not know, such as drafter and target sharing a
    processor, shows in the rates that were reached in both ways: the promise is corrected by them.
    """

    def __init__(self, speculation: Speculation, most: int) -> None:
        self._speculation = speculation
        self._most = most
        self._num_rounds = 0
        self._belief = 1.0  # in what was measured of two halves, 0 … 1

    def choose(self, link: TargetLink) -> int:
        """1 or 2, called between any two rounds."""
        speculation, num_sequences = self._speculation, len(link.sequences)
        if self._most == 1 or num_sequences < _LEAST_SEQUENCES:
            return 1
        now_two = speculation.num_micro_batches == 2
        self._belief = 1.0 if now_two else self._belief * _FORGETTING
        self._num_rounds += 1
        if self._num_rounds % _EVERY_ROUNDS:
            return speculation.num_micro_batches
        promised = speculation.advantage_of_halves(num_sequences)
        one, two = speculation.rate_with(1), speculation.rate_with(2)
        kept = 1.0 if one is None or two is None else two / (one * promised)
        return 2 if promised * kept**self._belief > (1.0 if now_two else _ADVANTAGE) else 1
