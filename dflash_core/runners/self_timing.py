"""How long a runner's steps of each size take on this machine, measured before anybody waits for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import perf_counter

import numpy as np

REPETITIONS = 2
"""Steps of each size at a time; of these the faster one counts: the first finds caches as another size left them."""

_MOST_PASSES = 9
_BUDGETS = 6.0  # for all passes

StepTimes = tuple[tuple[int, int], ...]
"""(size, microseconds), sizes rising."""

TimeStep = Callable[[int], list[float]]
"""Runs `REPETITIONS` steps of one size and returns the seconds that each took."""


def climb(
    sizes: Iterable[int], time_step: TimeStep, budget_s: float, clock: Callable[[], float] = perf_counter
) -> StepTimes:
    """Times steps of rising sizes, until `budget_s` seconds would not do for one more that takes as long as the last;
    then the same sizes again, falling and rising in turn, until six times the budget would not do for another pass.

    What a size takes in relation to the others is the least over the passes: how many rows a round had better have
    depends on differences that are smaller than those between a machine's better and worse moments, which last shorter
    than a pass where a neighbour comes and goes. Short passes, and many of them, meet a better one with every size. How
    fast the machine is on the whole is the median. The first size is timed in any case. What is around the steps counts
    as spent too.
    """
    first: dict[int, float] = {}  # seconds by size
    begin, spent, last = clock(), 0.0, 0.0
    for size in sizes:
        if first and spent + last > budget_s:
            break
        first[size] = min(time_step(size))
        before, spent = spent, clock() - begin
        last = spent - before
    passes, longest = [first], spent
    while first and len(passes) < _MOST_PASSES and spent + longest <= _BUDGETS * budget_s:
        passes.append({size: min(time_step(size)) for size in reversed(passes[-1])})
        before, spent = spent, clock() - begin
        longest = max(longest, spent - before)
    return tuple((size, max(1, round(seconds * 1e6))) for size, seconds in _seconds(passes).items())


def _seconds(passes: list[dict[int, float]]) -> dict[int, float]:
    """By size: the least of the passes, as many times longer for all as the passes took on the whole."""
    sizes = list(passes[0])
    if not sizes:
        return {}
    logarithms = np.log([[max(times[size], 1e-9) for size in sizes] for times in passes])
    least = logarithms.min(axis=0)
    found = np.exp(least + np.median((logarithms - least).mean(axis=1)))
    return dict(zip(sizes, found.tolist(), strict=True))


def doubling(largest: int) -> list[int]:
    """1, 2, 4, … and `largest` itself."""
    return [*(1 << power for power in range((largest - 1).bit_length())), largest] if largest > 0 else []
