"""`LatencyEstimator`: the time of a step by its size and by what comes on top, learned from steps that were run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.router.latency.ladder import Ladder, Places
from cluster.router.latency.monotone import non_decreasing
from cluster.router.latency.robust_filter import RobustFilter
from dflash_core.jit import jit

Floats = npt.NDArray[np.float64]

_OCTAVES = 3.0  # in size over which corrections are alike
_CHANGE_SPEED, _CHANGE_SHAPE, _CHANGE_COST = 0.5, 0.05, 0.2
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


SEEDED, UNSEEDED = Spread(0.4, 0.1), Spread(2.5, 0.8)


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
        least = np.concatenate([np.full(1 + num_knots, -np.inf), np.zeros(num_costs)])
        self._filter = RobustFilter(mean, self._covariance(spread.speed, spread.shape, costs_spread), least)
        self._change = self._covariance(_CHANGE_SPEED, _CHANGE_SHAPE, costs_spread)
        self._places = ladder.places(1)
        # By the state as it is, made when they are read: many steps are observed whose curve nobody asks for.
        self._knot_times: Floats | None = None
        self._cost_seconds: Floats | None = None
        self._curve: Floats | None = None  # [n] of sizes 0 … n − 1, nothing on top
        self._warm_up()

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
        """`[num_costs]` seconds per unit of each. Read only."""
        if self._cost_seconds is None:
            self._cost_seconds = self.speed * self._units * self._filter.mean[self._costs]
        return self._cost_seconds

    def knot_times(self) -> Floats:
        """`[num_knots]` seconds of steps of the knots' sizes, nothing on top; they do not fall. Read only."""
        if self._knot_times is None:
            self._knot_times = _knot_times(self._log_seed, self._filter.mean, self._filter.covariance)
        return self._knot_times

    def curve(self, largest: int) -> Floats:
        """`[n]` seconds of steps of 0, 1, … at least `largest`, nothing on top; read only."""
        if self._curve is None or len(self._curve) <= largest:
            self._curve = self._places_with(largest).times(self.knot_times(), largest + 1)
        return self._curve

    def seconds(self, size: int) -> float:
        """Of a step of this size, nothing on top."""
        if self._curve is not None and len(self._curve) > size:
            return float(self._curve[size])
        left, weight, scale = self._place(size)
        low, high = self.knot_times()[left : left + 2].tolist()
        return float((low + weight * (high - low)) * scale)

    def observe(self, size: int, quantities: Floats, seconds: float) -> None:
        """A step of `size` with `quantities [num_costs]` took `seconds`."""
        state = self._filter.mean
        left, weight, scale = self._place(size)
        row, expected = _linearised(
            self._log_seed, state, left, weight, scale, self._units, quantities, self._expected, self._change
        )
        self._filter.observe(row, math.log(max(seconds, _LEAST_SECONDS) / expected) - state[0], self._change)
        self._knot_times = self._cost_seconds = self._curve = None

    def _warm_up(self) -> None:
        """Compiles (or loads from the cache) the kernels, so that the first round does not wait for them."""
        self._places.times(self.knot_times(), 1)
        state, nothing = self._filter.mean, np.zeros(len(self._units))
        row, _ = _linearised(self._log_seed, state, 0, 0.0, 1.0, self._units, nothing, self._expected, self._change)
        RobustFilter(state, self._filter.covariance, state).observe(row, 0.0, self._change)

    def _place(self, size: int) -> tuple[int, float, float]:
        places = self._places_with(size)
        return int(places.left[size]), float(places.weight[size]), float(places.scale[size])

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


@jit
def _knot_times(log_seed: Floats, state: Floats, covariance: Floats) -> Floats:
    """`[num_knots]` seconds."""
    log_times, certain = log_seed.copy(), np.empty(len(log_seed))
    for knot in range(len(log_seed)):
        log_times[knot] += state[1 + knot]
        certain[knot] = 1.0 / covariance[1 + knot, 1 + knot]
    times: Floats = np.exp(state[0] + non_decreasing(log_times, certain))
    return times


@jit
def _linearised(
    log_seed: Floats,
    state: Floats,
    left: int,
    weight: float,
    scale: float,
    unit_seconds: Floats,  # [num_costs], as the next two
    quantities: Floats,
    expected_costs: Floats,
    change: Floats,  # [state, state], of which costs are set: they change by a share of what they are
) -> tuple[Floats, float]:
    """`[state]` by how much the logarithm of a step's time grows with each of the state, and the time at speed 1."""
    row = np.zeros(len(state))
    low = scale * (1.0 - weight) * math.exp(log_seed[left] + state[1 + left])
    high = scale * weight * math.exp(log_seed[left + 1] + state[2 + left])
    row[1 + left], row[2 + left] = low, high
    expected, first_cost = low + high, 1 + len(log_seed)
    for cost in range(len(quantities)):
        place = first_cost + cost
        row[place] = unit_seconds[cost] * quantities[cost]
        expected += row[place] * state[place]
        change[place, place] = (_CHANGE_COST * max(state[place], expected_costs[cost])) ** 2
    row /= expected
    row[0] = 1.0
    return row, expected
