"""The non-decreasing sequence that is nearest to a given one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def non_decreasing(values: Floats, weights: Floats) -> Floats:
    """`[n]`: of all non-decreasing sequences the one with the least Σ weight · (value − result)². Weights are positive.

    By pooling neighbours that are in the wrong order into their mean (pool adjacent violators).
    """
    if not np.any(values[1:] < values[:-1]):
        return values
    pools: list[tuple[float, float, int]] = []  # (mean, weight, length)
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        mean, total, length = value, weight, 1
        while pools and pools[-1][0] > mean:
            before, its_weight, its_length = pools.pop()
            mean = (before * its_weight + mean * total) / (its_weight + total)
            total += its_weight
            length += its_length
        pools.append((mean, total, length))
    means = np.array([mean for mean, _, _ in pools])
    return np.repeat(means, [length for _, _, length in pools])
