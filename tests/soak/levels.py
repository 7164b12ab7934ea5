"""Whether a figure stays level: the rule by which a soak fails."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rule:
    """The median of the last quarter of the samples may exceed that of the second quarter by this much at most.

    The first quarter is warm-up: caches fill, kernels are loaded, allocators find their size.
    """

    relative: float
    absolute: float

    def check(self, samples: list[float]) -> Level:
        quarter = len(samples) // 4
        if quarter < 2:
            raise ValueError(f"{len(samples)} samples are too few for a warm-up and a tail, 8 are needed")
        settled = float(np.median(samples[quarter : 2 * quarter]))
        tail = float(np.median(samples[-quarter:]))
        return Level(settled, tail, tail <= settled * (1 + self.relative) + self.absolute)


@dataclass(frozen=True)
class Level:
    settled: float  # after warm-up
    tail: float
    is_flat: bool


RULES = {
    "uss_mib": Rule(relative=0.05, absolute=8.0),  # memory that is the process's own
    "fds": Rule(relative=0.0, absolute=4.0),  # connections come and go with the peers that die
    "tasks": Rule(relative=0.0, absolute=8.0),  # of the event loop, under a load that varies
}
