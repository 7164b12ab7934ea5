"""Whom to draft for is decided in one round of a few: what was decided last stands for the others.

To find again and again what was found a round ago would be a good part of what the router does between rounds.
"""

from __future__ import annotations

from cluster.router.promises import Promise
from cluster.router.sequence import Sequence

_NUM_ROUNDS = 3
_MOST = 0.75


class StandingDecision:
    """Of one micro-batch. It falls as soon as one comes who is sampled otherwise, or many have come or gone; one by
    which somebody is drafted for, as soon as anybody has."""

    def __init__(self) -> None:
        self._num_left = 0  # rounds for which it stands
        self._chosen: list[Sequence] = []
        self.promise: Promise | None = None  # of their drafts
        # Of the last round that was looked at:
        self._ready: list[Sequence] = []
        self._running: list[Sequence] = []

    def hold(self, chosen: list[Sequence], promise: Promise | None = None) -> None:
        """What has been decided about the round that was just looked at: who is drafted for."""
        self._num_left, self._chosen, self.promise = _NUM_ROUNDS, chosen, promise

    def pass_on(self, ready: list[Sequence], running: list[Sequence]) -> list[Sequence] | None:
        """Who is drafted for in the next round; None where that is to be decided anew.

        Args:
            ready: of the running ones, who could be drafted for.
        """
        if self._num_left == 0 or not self._is_for(ready, running):
            self._num_left, self._ready, self._running = 0, [*ready], [*running]
            return None
        self._num_left -= 1
        return [*self._chosen]

    def _is_for(self, ready: list[Sequence], running: list[Sequence]) -> bool:
        if self._chosen:
            return ready == self._ready and running == self._running
        if not {sequence.kind for sequence in ready} <= {sequence.kind for sequence in self._ready}:
            return False
        num_left = len(set(self._running).intersection(running))
        return num_left >= _MOST * max(len(running), len(self._running))
