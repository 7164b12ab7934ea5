"""Sorting a batch's keys, which else is most of choosing among them."""

from __future__ import annotations

import numpy as np

from dflash_core.jit import jit
from dflash_core.trees.scoring import Doubles

_MOST_INSERTED = 256  # keys of a bucket that are put in order one by one


@jit
def falling(keys: Doubles) -> Doubles:
    """The same keys, the largest first. None may be negative or NaN.

    By as many buckets as there are keys, whose few are then put in order among themselves: numpy's sort takes three
    times as long for a thousand keys and five times for five thousand, numba's even longer.
    """
    num_keys = len(keys)
    if num_keys < 2:
        return keys.copy()
    bits = keys.view(np.int64)  # they rise as the values do
    highest, lowest = bits[0], bits[0]
    for i in range(num_keys):
        highest, lowest = max(highest, bits[i]), min(lowest, bits[i])
    num_lower_bits = 0
    while (highest - lowest) >> num_lower_bits >= num_keys:
        num_lower_bits += 1
    ends = np.zeros(num_keys + 1, np.int64)
    for i in range(num_keys):
        ends[((highest - bits[i]) >> num_lower_bits) + 1] += 1
    if ends.max() > _MOST_INSERTED and lowest != highest:
        return np.sort(keys)[::-1].copy()
    for bucket in range(num_keys):
        ends[bucket + 1] += ends[bucket]
    found = np.empty(num_keys, np.float64)
    for i in range(num_keys):
        bucket = (highest - bits[i]) >> num_lower_bits
        found[ends[bucket]] = keys[i]
        ends[bucket] += 1
    for i in range(1, num_keys):
        key, place = found[i], i
        while place > 0 and found[place - 1] < key:
            found[place] = found[place - 1]
            place -= 1
        found[place] = key
    return found
