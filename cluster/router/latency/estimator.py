"""`LatencyEstimator`: the time of a step by its size and by what comes on top, learned from steps that were run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.router.latency.ladder import Ladder, Places
from cluster.router.latency.monotone import non_decreasing
from cluster.router.latency.robust_filter import RobustFilter

Floats = npt.NDArray[np.float64]

_OCTAVES = 3.0  # in size over which corrections are alike
_CHANGE_SPEED, _CHANGE_SHAPE, _CHANGE_COST = 0.5, 0.15, 0.2
"""Standard deviations, in logarithms, by which a change is likely to be one of speed, of single sizes, or of a cost on
top: a machine that gets busy slows all of them."""

_LEAST_SECONDS = 1e-6


@dataclass(frozen=True, slots=True)
class Cost:
    """What comes on top of a step's size, per unit of something; how much is learned."""

    unit_seconds: float  # expected to be of the order of what one unit costs
    expected: float  # in these
    spread: float  # standard deviation, in these


@dataclass(frozen=True, slots=True)
class Spread:
    """Standard deviations of the logarithm of a step's time before anything was observed."""

    speed: float  # of all sizes together
    shape: float  # of one size among the others


SEEDED, UNSEEDED = Spread(0.4, 0.15), Spread(2.5, 0.8)


class LatencyEstimator:
    """Learns `time = speed · (curve(size) + Σ cost · quantity)`.

    `curve` is given by its values at the knots of a `Ladder`, each the seed's time there times a correction of its own.
    The state is the logarithm of the speed, of every correction, and the costs; a finished step tells the logarithm of
    its time. It is estimated by recursive least squares, linearised at the estimate, with forgetting (`RobustFilter`).
    Why so:

    - Noise of times is proportional to them, and so are changes of speed: hence logarithms. All factors stay positive.
    - The prior covariance says what a table of moving averages cannot: that the speed is common to all sizes, and that
      neighbours on the ladder are alike. So sizes which nobody runs move with those that are run, by 9/10 of what these
      moved; sizes that are run find their own values; the first steps count fully, later ones by the forgetting.
    - Forgetting adds uncertainty only to what a step was about, never to sizes that were not run: these keep what was
      learned of them and cannot drift.
    - Monotone times are what the truth has and an average of noise has not. The projection (isotonic regression at the
      knots, weighted by what is known) is made when reading: in the state it would be a bias that accumulates.
    - The projection of costs onto ≥ 0 is kept in the state: a cost below nothing would have to be unlearned first.
    """

    def __init__(self, ladder: Ladder, costs: tuple[Cost, ...], spread: Spread) -> None:
        self._ladder = ladder
        self._units: Floats = np.array([cost.unit_seconds for cost in costs], np.float64)
        self._expected: Floats = np.array([cost.expected for cost in costs], np.float64)
        self._log_seed: Floats = np.log(ladder.seed_times)
        num_knots, num_costs = len(ladder.knots), len(costs)
        octaves = np.log2(ladder.knots)
        self._alike: Floats = np.exp(-np.abs(octaves[:, None] - octaves) / _OCTAVES)
        self._shape = slice(1, 1 + num_knots)
        self._costs = slice(1 + num_knots, 1 + num_knots + num_costs)
        mean = np.concatenate([np.zeros(1 + num_knots), self._expected])
        costs_spread = np.array([cost.spread for cost in costs], np.float64)
        self._filter = RobustFilter(mean, self._covariance(spread.speed, spread.shape, costs_spread))
        self._change = self._covariance(_CHANGE_SPEED, _CHANGE_SHAPE, costs_spread)
        self._places = ladder.places(1)
        self._curve = self._times(1)  # [n] of sizes 0 … n − 1, nothing on top

    @property
    def num_observed(self) -> int:
        return self._filter.num_observed

    @property
    def num_ignored(self) -> int:
        """Outliers among them."""
        return self._filter.num_ignored

    @property
    def noise(self) -> float:
        """Standard deviation of the logarithm of a step's time around what is expected of it."""
        return self._filter.noise

    @property
    def speed(self) -> float:
        """By which times differ from the seed's on the whole: 2 is twice as slow."""
        return math.exp(self._filter.mean[0])

    def costs(self) -> Floats:
        """`[num_costs]` seconds per unit of each."""
        learned: Floats = self.speed * self._units * self._filter.mean[self._costs]
        return learned

    def knot_times(self) -> Floats:
        """`[num_knots]` seconds of steps of the knots' sizes, nothing on top; they do not fall."""
        certain = 1.0 / np.diagonal(self._filter.covariance)[self._shape]
        log_times = non_decreasing(self._log_seed + self._filter.mean[self._shape], certain)
        found: Floats = np.exp(self._filter.mean[0] + log_times)
        return found

    def curve(self, largest: int) -> Floats:
        """`[n]` seconds of steps of 0, 1, … at least `largest`, nothing on top; read only."""
        if len(self._curve) <= largest:
            self._curve = self._times(largest + 1)
        return self._curve

    def observe(self, size: int, quantities: Floats, seconds: float) -> None:
        """A step of `size` with `quantities [num_costs]` took `seconds`."""
        state = self._filter.mean
        row = self._parts(size, quantities)
        of_curve, of_costs = row[self._shape], row[self._costs]
        expected = float(of_curve.sum() + of_costs @ state[self._costs])
        row /= expected
        row[0] = 1.0
        deviation = math.log(max(seconds, _LEAST_SECONDS) / expected) - state[0]
        np.fill_diagonal(
            self._change[self._costs, self._costs],
            (_CHANGE_COST * np.maximum(state[self._costs], self._expected)) ** 2,
        )
        self._filter.observe(row, deviation, self._change)
        np.maximum(state[self._costs], 0.0, out=state[self._costs])
        self._curve = self._times(len(self._curve))  # here, so that reading it costs nothing

    def _parts(self, size: int, quantities: Floats) -> Floats:
        """`[state]` what each knot adds to the time, and each cost were its state 1; the speed left out."""
        places = self._places_with(size)
        left, weight, scale = int(places.left[size]), float(places.weight[size]), float(places.scale[size])
        parts = np.zeros(len(self._filter.mean))
        near = slice(1 + left, 3 + left)
        parts[near] = np.exp(self._log_seed[left : left + 2] + self._filter.mean[near])
        parts[near] *= (scale * (1.0 - weight), scale * weight)
        parts[self._costs] = self._units * quantities
        return parts

    def _times(self, num_sizes: int) -> Floats:
        return self._places_with(num_sizes - 1).times(self.knot_times(), num_sizes)

    def _places_with(self, size: int) -> Places:
        """Of all sizes up to this one at least."""
        if len(self._places.left) <= size:
            self._places = self._ladder.places(size + 1)
        return self._places

    def _covariance(self, speed: float, shape: float, costs: Floats) -> Floats:
        """`[state, state]` from standard deviations."""
        size = self._costs.stop
        found = np.zeros((size, size))
        found[0, 0] = speed**2
        found[self._shape, self._shape] = shape**2 * self._alike
        np.fill_diagonal(found[self._costs, self._costs], costs**2)
        return found
