"""`DraftTimeModel`: what a draft takes, on average and at worst."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.router.latency.estimator import SEEDED, UNSEEDED, LatencyEstimator
from cluster.router.latency.ladder import Ladder

Floats = npt.NDArray[np.float64]

_WITHOUT_SEED = (5e-3, 0.5e-3)  # seconds of any draft, and of each block on top
_NO_COSTS = np.empty(0)

_NUM_RATIOS = 256  # of the last drafts, from which quantiles are taken
_NUM_EXPECTED, _EXPECTED_SPREAD = 32, 0.3  # stand-ins for the first of them, and how far their logarithms spread


class DraftTimeModel:
    """Time of a drafter's answers by the number of blocks, and how far it spreads. See `LatencyEstimator`.

    Quantiles are those of the ratio between what the last drafts took and what was expected of them: slow answers are
    outliers for the mean but not for these.
    """

    def __init__(self, seed: tuple[tuple[int, int], ...]) -> None:
        """Of `DrafterInfo.draft_times_us`, which may be empty."""
        self._seed = seed
        self._ladder = Ladder((), [(blocks, time_us * 1e-6) for blocks, time_us in seed], _WITHOUT_SEED)
        self._estimator = LatencyEstimator(self._ladder, (), SEEDED if seed else UNSEEDED)
        expected = NormalDist(0.0, _EXPECTED_SPREAD)
        ratios = np.exp([expected.inv_cdf((index + 0.5) / _NUM_EXPECTED) for index in range(_NUM_EXPECTED)])
        self._ratios: deque[float] = deque(ratios.tolist())  # the oldest first
        self._ordered: list[float] = ratios.tolist()  # the same, rising
        self._num_expected = _NUM_EXPECTED  # stand-ins left among the ratios

    def observe(self, num_blocks: int, seconds: float) -> None:
        """A draft of so many blocks took `seconds`, from the request sent to the result received."""
        if num_blocks == 0:
            return
        ratio = seconds / self.seconds(num_blocks)
        self._ratios.append(ratio)
        insort(self._ordered, ratio)
        self._estimator.observe(num_blocks, _NO_COSTS, seconds)
        if self._num_expected and self._estimator.num_observed % (_NUM_RATIOS // _NUM_EXPECTED // 2) == 0:
            self._num_expected -= 1
            self._forget_oldest()
        if len(self._ratios) > _NUM_RATIOS:
            self._forget_oldest()

    def seconds(self, num_blocks: int) -> float:
        return self._estimator.seconds(num_blocks)

    def curve(self, most_blocks: int) -> Floats:
        """`[n]` seconds of drafts of 0, 1, … at least `most_blocks` blocks. Read only."""
        return self._estimator.curve(most_blocks)

    def quantile(self, num_blocks: int, share: float) -> float:
        """Seconds within which such a share of drafts of so many blocks is there, 0 < share < 1."""
        return self.seconds(num_blocks) * self._ratio(share)

    def as_dict(self) -> dict[str, Any]:
        """What was learned, for export: `seconds` is the time of as many `blocks`."""
        return {
            "seed_us": [list(point) for point in self._seed],
            "blocks": [int(blocks) for blocks in self._ladder.knots],
            "seconds": self._estimator.knot_times().tolist(),
            "ratio_p50": self._ratio(0.5),
            "ratio_p95": self._ratio(0.95),
            "noise": self._estimator.noise,
            "num_observed": self._estimator.num_observed,
            "num_ignored": self._estimator.num_ignored,
        }

    def _ratio(self, share: float) -> float:
        """The least that is not exceeded by such a share of the last ratios."""
        return self._ordered[math.ceil(share * len(self._ordered)) - 1]

    def _forget_oldest(self) -> None:
        del self._ordered[bisect_left(self._ordered, self._ratios.popleft())]
