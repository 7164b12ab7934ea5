"""`Ladder`: the sizes at which a step's time is known, and what it is there before anything was observed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dflash_core.jit import jit

Floats = npt.NDArray[np.float64]

_LARGEST_POWER = 13  # 8192: beyond, time is taken to be proportional to the size

_LEAST_SLOPE = 1e-3
"""Of the time of the first size, per unit of size: where the seed is flat or falls, as measured times may."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where sizes 0 … n − 1 lie: time = scale · ((1 − weight) · time at knot left + weight · time at the next one)."""

    left: npt.NDArray[np.int64]  # [n]
    weight: Floats  # [n]
    scale: Floats  # [n] above 1 beyond the last knot

    def times(self, knot_times: Floats, num_sizes: int) -> Floats:
        """`[num_sizes]` from the times at the knots."""
        return _times(self.left[:num_sizes], self.weight[:num_sizes], self.scale[:num_sizes], knot_times)


class Ladder:
    """Knots, and the time at each by the seed; piecewise linear in between.

    With `padded_sizes` (rising) these are the knots, and a size counts as the next of them: times are steps. Without,
    knots are the powers of two and the sizes of the seed. Below the first knot time is as there, beyond the last one
    proportional to the size. There are two knots at least.
    """

    def __init__(
        self, padded_sizes: Sequence[int], seed: Sequence[tuple[int, float]], without_seed: tuple[float, float]
    ):
        """`seed`: (size, seconds), sizes rising; beyond them its slope goes on. `without_seed`: seconds of a step of
        any size and, added to it, of each unit."""
        sizes = np.array([size for size, _ in seed], np.float64)
        seconds = np.array([time for _, time in seed], np.float64)
        if not len(seed):
            sizes, seconds = np.array([0.0]), np.array([without_seed[0]])
        self.slope = _slope(sizes, seconds) if len(sizes) > 1 else without_seed[1] * seconds[0] / without_seed[0]
        self._padded = np.array(padded_sizes, np.int64)
        powers = {1 << power for power in range(_LARGEST_POWER + 1)}
        knots = sorted(padded_sizes if len(padded_sizes) > 1 else powers | {size for size, _ in seed} | {*padded_sizes})
        self.knots: Floats = np.array(knots, np.float64)
        beyond = np.maximum(self.knots - sizes[-1], 0.0) * _last_slope(sizes, seconds, self.slope)
        self.seed_times: Floats = np.maximum.accumulate(np.interp(self.knots, sizes, seconds) + beyond)

    def places(self, num_sizes: int) -> Places:
        sizes = np.arange(num_sizes)
        if len(self._padded):
            index = np.minimum(np.searchsorted(self._padded, sizes), len(self._padded) - 1)
            sizes = np.maximum(self._padded[index], sizes)
        last = self.knots[-1]
        within = np.clip(sizes, self.knots[0], last)
        left = np.clip(np.searchsorted(self.knots, within, side="right") - 1, 0, len(self.knots) - 2)
        weight = (within - self.knots[left]) / (self.knots[left + 1] - self.knots[left])
        return Places(left, weight, np.maximum(sizes / last, 1.0))


@jit
def _times(left: npt.NDArray[np.int64], weight: Floats, scale: Floats, knot_times: Floats) -> Floats:
    """In one pass: a target's thousands of sizes are looked up anew after every round."""
    times = np.empty(len(left))
    for size in range(len(left)):
        low, high = knot_times[left[size]], knot_times[left[size] + 1]
        times[size] = (low + weight[size] * (high - low)) * scale[size]
    return times


def _slope(sizes: Floats, seconds: Floats) -> float:
    """Seconds per unit over all of the seed."""
    return float(max((seconds[-1] - seconds[0]) / (sizes[-1] - sizes[0]), _LEAST_SLOPE * seconds[0]))


def _last_slope(sizes: Floats, seconds: Floats, slope: float) -> float:
    """Seconds per unit where the seed ends."""
    if len(sizes) < 2:
        return slope
    return float(max((seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2]), slope / 2))
