"""The queue of a router: who goes first, and who goes when it is full.

    put back, the last one put back first │ resumed elsewhere before │ newcomers by priority, class, effective time
    └─ in front: they ran before and did nothing wrong ─────────────┘

A newcomer's effective time is when it was submitted plus a little for every prompt token that has to be computed.
So short ones overtake long ones of their class, by a bounded time: whoever waits longer than its length costs goes
before every newcomer, whatever that one's length.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

from cluster.requests import LatencyClass
from cluster.router.drain_rate import DrainRate
from cluster.router.sequence import Sequence

_CLASS_ORDER = {latency_class: place for place, latency_class in enumerate(LatencyClass)}


class Rank(NamedTuple):
    """A place in the queue; the smallest goes first."""

    is_newcomer: bool
    priority: int  # as the client gave it: lower goes first
    class_order: int
    order: float  # s, the effective time; of those in front, a number that falls or rises with each
    number: int  # of the rank: no two are equal

    def outranks(self, other: Rank) -> bool:
        """Whether it may take the other's place in a full queue: it came with more right, not just with less work."""
        return self[:3] < other[:3]


class WaitingQueue:
    """A list in order, its places found by bisection: unlike a heap it can be looked into behind its head, give its
    last, and forget anyone. Moving its pointers takes microseconds at ten thousand waiting.

    `s_per_token`: by how much every token that has to be computed delays a newcomer. 0: first come, first served.
    """

    def __init__(self, s_per_token: float) -> None:
        self.drain_rate = DrainRate()
        self._s_per_token = s_per_token
        self._ranks: dict[Sequence, Rank] = {}
        self._order: list[Sequence] = []
        self._aside: dict[Sequence, None] = {}
        self._numbers = count(1)

    def __len__(self) -> int:
        """Those set aside included."""
        return len(self._ranks)

    def __iter__(self) -> Iterator[Sequence]:
        """In their order, those set aside at last."""
        yield from self._order
        yield from self._aside

    def rank(self, sequence: Sequence, num_tokens: int) -> Rank:
        """Of a sequence that is submitted now, with so many tokens to compute.

        One that another router began goes before all newcomers: its client has tokens, and waits in mid-sentence.
        """
        number = next(self._numbers)
        if sequence.num_output > 0:
            return Rank(False, 0, 0, number, number)
        request = sequence.request
        order = sequence.submitted_at + self._s_per_token * num_tokens
        return Rank(True, request.priority, _CLASS_ORDER[request.latency_class], order, number)

    def push(self, sequence: Sequence, rank: Rank) -> None:
        assert sequence not in self._ranks, f"{sequence.key} waits already"
        self._ranks[sequence] = rank
        insort(self._order, sequence, key=self._ranks.__getitem__)

    def put_back(self, sequence: Sequence) -> None:
        """In front of all: one that lost its target or its blocks. Of several, the one that came first comes last."""
        number = next(self._numbers)
        self.push(sequence, Rank(False, 0, 0, -number, number))

    def remove(self, sequence: Sequence) -> None:
        if sequence in self._aside:
            del self._aside[sequence]
        else:
            del self._order[self._place(sequence)]
        del self._ranks[sequence]

    def at(self, place: int) -> Sequence | None:
        """Counted from the head, 0; None behind the end."""
        return self._order[place] if place < len(self._order) else None

    def displaced_by(self, rank: Rank) -> Sequence | None:
        """Who would be served last, where the rank is worth more than it; never one that ran before."""
        last = self._order[-1] if self._order else None
        return last if last is not None and rank.outranks(self._ranks[last]) else None

    # --- those that no target could hold, until one comes that can

    def set_aside(self, sequence: Sequence) -> None:
        """Keeps its rank, but nobody looks at it: it must not hold up the others."""
        del self._order[self._place(sequence)]
        self._aside[sequence] = None

    def take_back(self, sequence: Sequence) -> None:
        del self._aside[sequence]
        insort(self._order, sequence, key=self._ranks.__getitem__)

    @property
    def aside(self) -> tuple[Sequence, ...]:
        return tuple(self._aside)

    def _place(self, sequence: Sequence) -> int:
        place = bisect_left(self._order, self._ranks[sequence], key=self._ranks.__getitem__)
        assert self._order[place] is sequence, f"{sequence.key} is not in its place"
        return place
