"""`RobustFilter`: linear least squares that forgets, ignores outliers, and follows what turns out to be none."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import numpy.typing as npt

from dflash_core.jit import jit

Floats = npt.NDArray[np.float64]

_FORGETTING = 0.05
"""How much of the noise each observation adds to the uncertainty of what it concerns: in the long run the gain, so
that the last twenty observations or so of a kind count."""

_LIMIT = 3.0  # standard deviations; what lies beyond is an outlier
_WINDOW, _MOST_OUTLIERS = 10, 4  # of so many observations so many may be outliers on one side; with one more none is
_FIRST_NOISE, _LEAST_NOISE, _MOST_NOISE = 0.1, 0.01, 1.0
_NOISE_STEP = 0.04  # by which the noise grows or shrinks with every observation
_MEDIAN = 0.6745  # of |x|, x standard normal


class RobustFilter:
    """Estimates the state of a linear model from observations with noise of unknown size (a Kalman filter).

    An observation far off what state and noise allow is an outlier: it is not used. When five of the last ten are
    outliers on the same side, the truth has changed: their median is believed at once, in the direction of what is
    likely to change. The noise is the median of the deviations, which outliers do not move.
    """

    def __init__(self, mean: Floats, covariance: Floats, least: Floats) -> None:
        """`mean [n]` and `covariance [n, n]` of the state before any observation; it never falls below `least [n]`."""
        self.mean = mean.copy()
        self.covariance = covariance.copy()
        self._least = least
        self.noise = _FIRST_NOISE  # standard deviation
        self.num_observed = 0
        self.num_ignored = 0
        self._outliers: deque[float] = deque(maxlen=_WINDOW)  # deviations; 0 of what was no outlier

    def observe(self, row: Floats, deviation: float, change: Floats) -> None:
        """`row [n]`: what the observation is of the state; `deviation`: observed less expected.

        `change [n, n]`: the covariance of how the state changes over time, by its directions; its scale is of no
        matter.
        """
        drift = _FORGETTING * self.noise
        state = (self.mean, self.covariance, self._least, row)
        spread = _absorb(*state, deviation, change, drift, self.noise, _LIMIT)
        self.num_observed += 1
        is_outlier = abs(deviation) > _LIMIT * spread
        self._outliers.append(deviation if is_outlier else 0.0)
        if is_outlier:
            same_side = [other for other in self._outliers if other * deviation > 0.0]
            if len(same_side) <= _MOST_OUTLIERS:
                self.num_ignored += 1
            else:
                median = float(np.median(same_side))
                _absorb(*state, median, change, median, self.noise, math.inf)
                self._outliers.clear()
        self._note_noise(abs(deviation) > _MEDIAN * spread)

    def _note_noise(self, is_above_median: bool) -> None:
        step = _NOISE_STEP if is_above_median else -_NOISE_STEP
        self.noise = min(max(self.noise * math.exp(step), _LEAST_NOISE), _MOST_NOISE)


@jit
def _times(matrix: Floats, vector: Floats) -> Floats:
    """The product. Without BLAS, whose call takes longer than the few numbers of a state."""
    product = np.zeros(len(vector))
    for i in range(len(vector)):
        for j in range(len(vector)):
            product[i] += matrix[i, j] * vector[j]
    return product


@jit
def _dot(one: Floats, other: Floats) -> float:
    total = 0.0
    for i in range(len(one)):
        total += one[i] * other[i]
    return total


@jit
def _absorb(
    mean: Floats,  # [n], changed
    covariance: Floats,  # [n, n], changed
    least: Floats,  # [n]
    row: Floats,
    deviation: float,
    change: Floats,
    drift: float,  # standard deviation of what may have changed, seen through the row
    noise: float,
    limit: float,  # in standard deviations; a larger deviation changes nothing
) -> float:
    """The state may have drifted in the direction of what is likely to change; then the observation is taken in.

    Returns by how much such observations were expected to deviate.
    """
    spread = math.sqrt(_dot(row, _times(covariance, row)) + noise**2)
    if abs(deviation) > limit * spread:
        return spread
    direction = _times(change, row)
    direction *= drift / _dot(row, direction)
    for i in range(len(mean)):
        for j in range(len(mean)):
            covariance[i, j] += direction[i] * direction[j]
    gained = _times(covariance, row)
    variance = _dot(row, gained) + noise**2
    for i in range(len(mean)):
        mean[i] = max(least[i], mean[i] + gained[i] * (deviation / variance))
        for j in range(len(mean)):
            covariance[i, j] -= gained[i] * gained[j] / variance
    return spread
