"""When the tokens of each sequence came, and the gaps between them."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cluster.requests import TokenEvent


class Arrivals:
    """A sink of the router that writes down the time of every event."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)  # seconds, by sequence
        self._waiter: tuple[Callable[[], bool], asyncio.Future[None]] | None = None

    def put(self, events: list[TokenEvent]) -> None:
        now = time.perf_counter()
        for event in events:
            if event.error is not None:
                self._wake(event.error)
            self.times[event.sequence_id].append(now)
        self._wake()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns once an event makes the condition true. Raises a sequence's error."""
        if condition():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiter = (condition, future)
        await future

    def _wake(self, error: BaseException | None = None) -> None:
        if self._waiter is None:
            return
        condition, future = self._waiter
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        elif condition():
            future.set_result(None)


@dataclass(frozen=True, slots=True)
class Gaps:
    """Milliseconds between a sequence's tokens: those of one round come together and count once."""

    count: int
    p50: float
    p99: float
    max: float

    @classmethod
    def of(cls, gaps_ms: Iterable[float]) -> Gaps:
        gaps = np.fromiter(gaps_ms, float)
        p50, p99 = np.percentile(gaps, (50, 99)).tolist()
        return cls(len(gaps), p50, p99, float(gaps.max()))


def gaps_ms(times: Iterable[float], begin: float, end: float) -> list[float]:
    """Of one sequence, those that overlap the time from `begin` to `end`."""
    return [(later - earlier) * 1e3 for earlier, later in pairwise(times) if later > begin and earlier < end]
