"""numba kernels for one CPU core: which ids top-k, top-p and min-p exclude, without a full sort.

Values fall into bins by their distance from the best; only the bin that a border lies in is sorted.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dflash_core.jit import jit

Floats = npt.NDArray[np.float32]
Longs = npt.NDArray[np.int64]
Ints = npt.NDArray[np.int32]

NUM_BINS = 1024  # of (best − value), for the truncation border
BINS_PER_NAT = np.float32(32.0)
UNIT_MASS = 2.0**44  # of the best id, in fixed point as on the device: sums of it do not depend on their order

INF = np.float32(np.inf)
NO_BORDER = np.int64(np.iinfo(np.int64).min)
_ID_MASK = np.int64(0x7FFFFFFF)


@jit
def largest_of(values: Floats, start: int, stop: int) -> np.float32:
    """Maximum of values[start:stop] (a multiple of 4 values), in four independent chains; NaN never wins."""
    m0 = m1 = m2 = m3 = -INF
    for i in range(start, stop, 4):
        m0 = values[i] if values[i] > m0 else m0
        m1 = values[i + 1] if values[i + 1] > m1 else m1
        m2 = values[i + 2] if values[i + 2] > m2 else m2
        m3 = values[i + 3] if values[i + 3] > m3 else m3
    m0 = m1 if m1 > m0 else m0
    m2 = m3 if m3 > m2 else m2
    return m2 if m2 > m0 else m0


@jit
def _bin(value: np.float32, best: np.float32) -> int:
    distance = (best - value) * BINS_PER_NAT
    return int(distance) if distance < np.float32(NUM_BINS - 1) else NUM_BINS - 1


@jit
def key_of(bits: Ints, i: int) -> np.int64:
    """Orders (value, lowest id first) as one integer; `bits` views the values, which hold no −0."""
    ordered = bits[i] ^ ((bits[i] >> np.int32(31)) & np.int32(0x7FFFFFFF))
    return (np.int64(ordered) << np.int64(32)) | (_ID_MASK - np.int64(i))


@jit
def _gather_bin(values: Floats, num_ids: int, best: np.float32, wanted: int, border: np.int64, keys: Longs) -> int:
    """Sorts the keys from `border` on that fall into one bin, rising, into `keys`; returns how many."""
    bits = values.view(np.int32)
    count = 0
    for i in range(num_ids):
        if _bin(values[i], best) == wanted and key_of(bits, i) >= border:
            keys[count] = key_of(bits, i)
            count += 1
    keys[:count].sort()
    return count


@jit
def _mass(value: np.float32, best: np.float32) -> np.int64:
    """exp(value − best) in fixed point."""
    return np.int64(np.float64(np.float32(math.exp(value - best))) * UNIT_MASS)


@jit
def _wanted_mass(top_p: float, total: np.int64) -> np.int64:
    return max(np.int64(1), np.int64(math.ceil(np.float64(top_p) * np.float64(total))))


@jit
def _border(values: Floats, num_ids: int, best: np.float32, top_k: int, top_p: float, keys: Longs) -> np.int64:
    """The least key inside top-k and then top-p; only the bin that holds a border is sorted."""
    bits = values.view(np.int32)
    border = NO_BORDER
    if 0 < top_k < num_ids:
        counts = np.zeros(NUM_BINS, np.int64)
        for i in range(num_ids):
            counts[_bin(values[i], best)] += 1
        above, crossing = 0, 0
        while above + counts[crossing] < top_k:
            above += counts[crossing]
            crossing += 1
        in_bin = _gather_bin(values, num_ids, best, crossing, border, keys)
        border = keys[in_bin - (top_k - above)]
    if top_p < 1.0:
        masses = np.zeros(NUM_BINS, np.int64)
        for i in range(num_ids):
            if key_of(bits, i) >= border:
                masses[_bin(values[i], best)] += _mass(values[i], best)
        wanted_mass = _wanted_mass(top_p, masses.sum())
        mass, crossing = np.int64(0), 0
        while crossing < NUM_BINS - 1 and mass + masses[crossing] < wanted_mass:
            mass += masses[crossing]
            crossing += 1
        in_bin = _gather_bin(values, num_ids, best, crossing, border, keys)
        for j in range(in_bin - 1, -1, -1):
            border = keys[j]
            mass += _mass(values[_ID_MASK - (border & _ID_MASK)], best)
            if mass >= wanted_mass:
                break
    return border


@jit
def mark_outside(
    values: Floats, num_ids: int, top_k: int, top_p: float, min_p: float, keys: Longs, outside: npt.NDArray[np.bool_]
) -> bool:
    """Sets `outside` to the ids that top-k, top-p and min-p exclude; returns False if all three are off."""
    if not (0 < top_k < num_ids or top_p < 1.0 or min_p > 0.0):
        return False
    best = largest_of(values, 0, len(values))
    border = _border(values, num_ids, best, top_k, top_p, keys)
    floor = np.float32(math.log(np.float64(min_p))) if min_p > 0.0 else -INF
    bits = values.view(np.int32)
    for i in range(num_ids):
        outside[i] = key_of(bits, i) < border or not (values[i] - best >= floor)
    return True


@jit
def masses_of(
    values: Floats,  # [rows, width]
    best: Floats,  # [rows]
) -> Longs:
    """exp(value − best) in fixed point, `[rows, width]`, as `choose_rows` sums it for top-p."""
    masses = np.empty(values.shape, np.int64)
    for row in range(len(values)):
        for i in range(values.shape[1]):
            masses[row, i] = _mass(values[row, i], best[row])
    return masses
