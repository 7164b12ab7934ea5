"""Rounds after one in which no draft pays: a few go by without another look at whether one does.

To find again and again that nothing pays would be a good part of what the router does between rounds.
"""

from __future__ import annotations

from cluster.router.sequence import Sequence

_NUM_ROUNDS = 3
_MOST = 0.75


class UnseenRounds:
    """Of one micro-batch. They end as soon as one comes who is sampled otherwise, or many have come or gone."""

    def __init__(self) -> None:
        self._num_left = 0
        # Of the last round that was looked at:
        self._kinds: set[int] = set()  # of those who were ready
        self._running: set[Sequence] = set()

    def begin(self) -> None:
        """The round that was just looked at is the last one for a while."""
        self._num_left = _NUM_ROUNDS

    def begin_while_nobody_is_ready(self) -> None:
        self._num_left, self._kinds = _NUM_ROUNDS, set()

    def is_next(self, ready: list[Sequence], running: list[Sequence]) -> bool:
        """Whether the next round is one of them; else it is looked at.

        Args:
            ready: of the running ones, who could be drafted for.
        """
        kinds = {sequence.kind for sequence in ready}
        if self._num_left == 0 or not (kinds <= self._kinds and self._are_mostly_known(running)):
            self._num_left, self._kinds, self._running = 0, kinds, set(running)
            return False
        self._num_left -= 1
        return True

    def _are_mostly_known(self, running: list[Sequence]) -> bool:
        num_left = len(self._running.intersection(running))
        return num_left >= _MOST * max(len(running), len(self._running))
