"""What one simulation found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Spread:
    """Milliseconds; None where nothing came to be measured."""

    count: int
    p50: float | None
    p99: float | None

    @classmethod
    def of_seconds(cls, seconds: Sequence[float]) -> Spread:
        if not seconds:
            return cls(0, None, None)
        p50, p99 = (np.percentile(seconds, (50, 99)) * 1e3).tolist()
        return cls(len(seconds), p50, p99)


@dataclass(frozen=True, slots=True)
class Fairness:
    """Of streams' rates: Jain's index, 1 where all are alike and 1/n where one has everything; the worst of the median.

    None where there are no streams.
    """

    jain: float | None
    worst_of_median: float | None

    @classmethod
    def of_rates(cls, rates: Sequence[float]) -> Fairness:
        values = np.asarray(rates, float)
        if not values.any():
            return cls(None, None)
        median = float(np.median(values))
        return cls(
            float(values.sum() ** 2 / (len(values) * np.square(values).sum())),
            float(values.min() / median) if median > 0 else None,
        )


@dataclass(frozen=True, slots=True)
class RouterWork:
    """Processor time of all routers together, their event loop included."""

    us_per_round: float
    us_per_sequence_round: float
    busy: float  # seconds of one router's processor per simulated second; above 1 it could not keep up


@dataclass(frozen=True, slots=True)
class Finding:
    """Of one scenario under one policy. Everything but `router` and `wall_s` is in virtual time, and repeatable."""

    group: str
    scenario: str
    policy: str
    num_streams: int | None
    tokens_per_s: float
    first_token: Spread
    per_token: Spread
    fairness: Fairness
    acceptance_length: float | None
    nodes_per_sequence: float | None
    sequences_per_round: float | None
    target_busy: float  # share of the time
    drafter_busy: float
    rounds: int
    preempted: int
    refused: int
    requests_ended: int
    router: RouterWork
    simulated_s: float
    wall_s: float
