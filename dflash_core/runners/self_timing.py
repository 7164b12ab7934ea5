"""How long a runner's steps of each size take on this machine, measured before anybody waits for them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from time import perf_counter

REPETITIONS = 3
"""Steps of each size; of their times the median counts, so that one which is disturbed does not."""

StepTimes = tuple[tuple[int, int], ...]
"""(size, microseconds), sizes rising."""

TimeStep = Callable[[int], list[float]]
"""Runs `REPETITIONS` steps of one size and returns the seconds that each took."""


def climb(
    sizes: Iterable[int], time_step: TimeStep, budget_s: float, clock: Callable[[], float] = perf_counter
) -> StepTimes:
    """Times steps of rising sizes, until `budget_s` seconds would not do for one more that takes as long as the last.

    The first size is timed in any case. What is around the steps counts as spent too.
    """
    found: list[tuple[int, int]] = []
    begin, spent, last = clock(), 0.0, 0.0
    for size in sizes:
        if found and spent + last > budget_s:
            break
        seconds = time_step(size)
        found.append((size, max(1, round(statistics.median(seconds) * 1e6))))
        before, spent = spent, clock() - begin
        last = spent - before
    return tuple(found)


def doubling(largest: int) -> list[int]:
    """1, 2, 4, … and `largest` itself."""
    return [*(1 << power for power in range((largest - 1).bit_length())), largest] if largest > 0 else []
