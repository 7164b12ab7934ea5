"""How long a runner's steps of each size take on this machine, measured before anybody waits for them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from time import perf_counter

import numpy as np

REPETITIONS = 3
"""Steps of each size at a time; of these the median counts, so that one which is disturbed does not."""

_MOST_PASSES = 3
_BUDGETS = 3.0  # for all passes

StepTimes = tuple[tuple[int, int], ...]
"""(size, microseconds), sizes rising."""

TimeStep = Callable[[int], list[float]]
"""Runs `REPETITIONS` steps of one size and returns the seconds that each took."""


def climb(
    sizes: Iterable[int], time_step: TimeStep, budget_s: float, clock: Callable[[], float] = perf_counter
) -> StepTimes:
    """Times steps of rising sizes, until `budget_s` seconds would not do for one more that takes as long as the last;
    then the same sizes again, falling and rising in turn, until thrice the budget would not do for another pass.

    What a size takes in relation to the others is the median over the passes: how many rows a round had better have
    depends on differences that are smaller than those between a machine's better and worse seconds. The first size is
    timed in any case. What is around the steps counts as spent too.
    """
    affordable: list[int] = []
    first: list[float] = []  # seconds
    begin, spent, last = clock(), 0.0, 0.0
    for size in sizes:
        if affordable and spent + last > budget_s:
            break
        affordable.append(size)
        first.append(statistics.median(time_step(size)))
        before, spent = spent, clock() - begin
        last = spent - before
    if not affordable:
        return ()
    passes, longest = [first], spent
    while len(passes) < _MOST_PASSES and spent + longest <= _BUDGETS * budget_s:
        times = [statistics.median(time_step(size)) for size in affordable[::-1]]
        passes.append(times[::-1])
        affordable, passes = affordable[::-1], [each[::-1] for each in passes]
        before, spent = spent, clock() - begin
        longest = max(longest, spent - before)
    found = zip(affordable, _medians(passes), strict=True)
    return tuple(sorted((size, max(1, round(seconds * 1e6))) for size, seconds in found))


def _medians(passes: list[list[float]]) -> list[float]:
    """`[sizes]` of `[passes][sizes]`: each pass has a speed of its own, by which it differs from the others."""
    logarithms = np.log(np.maximum(passes, 1e-9))
    speeds = logarithms.mean(axis=1)
    medians: list[float] = np.exp(np.median(speeds) + np.median(logarithms - speeds[:, None], axis=0)).tolist()
    return medians


def doubling(largest: int) -> list[int]:
    """1, 2, 4, … and `largest` itself."""
    return [*(1 << power for power in range((largest - 1).bit_length())), largest] if largest > 0 else []
