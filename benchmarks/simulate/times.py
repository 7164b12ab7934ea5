"""How long simulated rounds, drafts and messages take: tables, interpolated."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

Table = tuple[tuple[int, float], ...]  # (size, milliseconds), sizes rising


def interpolate(table: Table, size: float) -> float:
    """Milliseconds; before the first size its own, beyond the last one along the line through the last two."""
    (before, low), (last, high) = table[-2:]
    if size > last:
        return high + (size - last) * (high - low) / (last - before)
    sizes, times = zip(*table, strict=True)
    return float(np.interp(size, sizes, times))


@dataclass(frozen=True, slots=True)
class RoundTimes:
    """Of a target: ms(rows, padded) + the larger of what reading the context takes and what computing with it does."""

    by_rows: Table  # with hardly any context
    ns_per_context: float  # per token in the caches of a round's sequences, each read once
    ns_per_row_context: float  # per row and token that it attends to
    row_sizes: tuple[int, ...] = ()  # rows are padded to the next of them; larger rounds are not padded

    def seconds(self, rows: int, context: int, row_context: int) -> float:
        """`context`: tokens in the caches of all sequences. `row_context`: of every row its sequence's, summed."""
        attention_ns = max(context * self.ns_per_context, row_context * self.ns_per_row_context)
        return interpolate(self.by_rows, self.padded(rows)) / 1e3 + attention_ns / 1e9

    def padded(self, rows: int) -> int:
        index = bisect_left(self.row_sizes, rows)
        return self.row_sizes[index] if index < len(self.row_sizes) else rows

    @property
    def measured_us(self) -> tuple[tuple[int, int], ...]:
        """As a target tells it when it joins."""
        sizes = self.row_sizes or tuple(rows for rows, _ in self.by_rows)
        return tuple((rows, round(interpolate(self.by_rows, rows) * 1e3)) for rows in sizes)


_OWN, _LASTS_S = 0.5, (0.1, 1.0)  # of the noise's variance, a round's own part, and for how long the rest lasts


class RoundNoise:
    """Of rounds' times, on a machine that others use too; 1 on average.

    It lasts, as measured of plain decoding on two shared cores, rounds of 14 ms: logarithms of times spread by 0.23,
    and are correlated by 0.47 with the next round's, 0.24 with the tenth's from there, 0.13 with the fiftieth's.
    """

    def __init__(self, spread: float, rng: np.random.Generator) -> None:
        """`spread`: standard deviation of the logarithm."""
        self._spread = spread
        self._rng = rng
        self._lasting = rng.standard_normal(len(_LASTS_S))
        self._weights = math.sqrt(_OWN), math.sqrt((1.0 - _OWN) / len(_LASTS_S))

    def factor(self, seconds: float) -> float:
        """Of a round that is to take so long, which passes."""
        if self._spread == 0.0:
            return 1.0
        kept = np.exp(-seconds / np.array(_LASTS_S))
        own, *new = self._rng.standard_normal(1 + len(kept))
        self._lasting = kept * self._lasting + np.sqrt(1.0 - kept**2) * new
        of_own, of_lasting = self._weights
        total = of_own * own + of_lasting * float(self._lasting.sum())
        return math.exp(self._spread * total - self._spread**2 / 2)


@dataclass(frozen=True, slots=True)
class DraftTimes:
    """Of a drafter, by blocks. Each draft's time is multiplied by one of `1 ± jitter`, of a straggler by more."""

    by_blocks: Table
    jitter: float = 0.05
    straggler_share: float = 0.0  # of drafts
    straggler_factor: float = 10.0

    def seconds(self, num_blocks: int, rng: np.random.Generator) -> float:
        factor = 1.0 + self.jitter * (2.0 * rng.random() - 1.0)
        if self.straggler_share > 0.0 and rng.random() < self.straggler_share:
            factor *= self.straggler_factor
        return interpolate(self.by_blocks, num_blocks) * factor / 1e3

    @property
    def measured_us(self) -> tuple[tuple[int, int], ...]:
        return tuple((blocks, round(ms * 1e3)) for blocks, ms in self.by_blocks)


@dataclass(frozen=True, slots=True)
class Network:
    """Between router, targets and drafters."""

    latency_s: float = 0.0  # one way
    feature_bytes_per_token: int = 0
    feature_bytes_per_s: float = float("inf")  # from one target to its drafters

    def features_s(self, num_tokens: int) -> float:
        """For which they occupy the sender."""
        return num_tokens * self.feature_bytes_per_token / self.feature_bytes_per_s


class RouterProcessor:
    """Of one router: what it does for a round takes virtual time too, and one round's work waits for another's.

    So a router of too many targets shows as targets that wait.
    """

    def __init__(self, s_per_sequence: float) -> None:
        self._s_per_sequence = s_per_sequence
        self._free_at = 0.0

    def work(self, now: float, num_sequences: int) -> float:
        """Takes a round's share from now on; returns when it is done."""
        self._free_at = max(self._free_at, now) + num_sequences * self._s_per_sequence
        return self._free_at
