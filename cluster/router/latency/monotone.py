"""The non-decreasing sequence that is nearest to a given one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dflash_core.jit import jit

Floats = npt.NDArray[np.float64]


@jit
def non_decreasing(values: Floats, weights: Floats) -> Floats:
    """`[n]`: of all non-decreasing sequences the one with the least Σ weight · (value − result)². Weights are positive.

    By pooling neighbours that are in the wrong order into their mean (pool adjacent violators).
    """
    means, totals = np.empty(len(values)), np.empty(len(values))  # of pools
    ends = np.empty(len(values), np.int64)
    num_pools = 0
    for index in range(len(values)):
        mean, total = values[index], weights[index]
        while num_pools > 0 and means[num_pools - 1] > mean:
            num_pools -= 1
            its_total = totals[num_pools]
            mean = (means[num_pools] * its_total + mean * total) / (its_total + total)
            total += its_total
        means[num_pools], totals[num_pools], ends[num_pools] = mean, total, index + 1
        num_pools += 1
    result, begin = np.empty(len(values)), 0
    for pool in range(num_pools):
        result[begin : ends[pool]] = means[pool]
        begin = ends[pool]
    return result
