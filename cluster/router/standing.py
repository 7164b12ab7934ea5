"""Whom to draft for is decided in one round of a few: what was decided last stands for the others.

To find again and again what was found a round ago would be a good part of what the router does between rounds.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.router.promises import Promise
from cluster.router.sequence import Sequence

_NUM_ROUNDS = 3
_MOST = 0.75
# Tokens still wanted by everyone who is drafted for: whoever is about to end gains less than its level says.
_LEAST_WANTED = 8


@dataclass(frozen=True, slots=True)
class Decision:
    """`drafted`: whom for. `rate`: the λ that belongs to it. `promise`: of the drafts."""

    drafted: list[Sequence]
    rate: float
    promise: Promise | None = None


class StandingDecision:
    """Of one micro-batch. It falls as soon as one comes who is sampled otherwise, or many have come or gone; one by
    which somebody is drafted for, as soon as anybody has, or one of these is about to end."""

    def __init__(self) -> None:
        self._num_left = 0  # rounds for which it stands
        self._decision = Decision([], 0.0)
        # Of the last round that was looked at:
        self._ready: list[Sequence] = []
        self._running: list[Sequence] = []

    def hold(self, decision: Decision) -> None:
        """What has been decided about the round that was just looked at."""
        self._num_left, self._decision = _NUM_ROUNDS, decision

    def pass_on(self, ready: list[Sequence], running: list[Sequence]) -> Decision | None:
        """About the next round; None where that is to be decided anew.

        Args:
            ready: of the running ones, who could be drafted for.
        """
        if self._num_left == 0 or not self._is_for(ready, running):
            self._num_left, self._ready, self._running = 0, [*ready], [*running]
            return None
        self._num_left -= 1
        return self._decision

    def _is_for(self, ready: list[Sequence], running: list[Sequence]) -> bool:
        drafted = self._decision.drafted
        if drafted:
            return (
                ready == self._ready
                and running == self._running
                and all(sequence.num_wanted > _LEAST_WANTED for sequence in drafted)
            )
        if not {sequence.kind for sequence in ready} <= {sequence.kind for sequence in self._ready}:
            return False
        num_left = len(set(self._running).intersection(running))
        return num_left >= _MOST * max(len(running), len(self._running))
