"""numba kernels for one CPU core: choosing tokens without noise for every id.

A row lives in a scratch buffer padded with −inf to whole chunks of `CHUNK` ids. Two exact bounds save the noise: a
chunk whose best logit plus the largest possible noise cannot win is skipped whole, and within a chunk an id is skipped
when its logit plus `NOISE_BOUNDS` of the top bits of its random word cannot win. What remains gets both logarithms.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dflash_core.jit import jit
from dflash_core.sampling.kernels_math import CHUNK, MOST_NOISE, fill_words, gumbel_of
from dflash_core.sampling.kernels_truncation import INF, NO_BORDER, key_of, largest_of, mark_outside

Floats = npt.NDArray[np.float32]
Longs = npt.NDArray[np.int64]
Ints = npt.NDArray[np.int32]
Words = npt.NDArray[np.uint32]


@jit
def _choose_noisy(
    values: Floats, base: int, seed: int, position: int, words: Words, bounds: Floats
) -> tuple[np.float32, int]:
    """The largest of values + noise and its place, ties to the first; −inf and −1 when no value is above −inf.

    `values` are those of the ids from `base` on, a multiple of `CHUNK`.
    """
    largest = largest_of(values, 0, len(values))
    if largest == -INF:
        return largest, -1
    best_id = 0
    while values[best_id] != largest:
        best_id += 1
    fill_words(seed, position, base + best_id - best_id % CHUNK, words)
    best = largest + gumbel_of(words[best_id % CHUNK])
    for start in range(0, len(values), CHUNK):
        if largest_of(values, start, start + CHUNK) + MOST_NOISE < best:
            continue
        fill_words(seed, position, base + start, words)
        for i in range(CHUNK):
            word = words[i]
            top = word >> np.uint32(24)
            bound = bounds[top] if top < 255 else bounds[256 + ((word >> np.uint32(16)) & np.uint32(255))]
            if values[start + i] + bound < best:
                continue
            score = values[start + i] + gumbel_of(word)
            if score > best or (score == best and start + i < best_id):
                best, best_id = score, start + i
    return best, best_id


@jit
def choose_rows(
    logits: Floats,  # [rows, width]
    num_ids: int,
    temperature: Floats,
    top_k: Ints,
    top_p: Floats,
    min_p: Floats,
    seeds: Longs,
    positions: Longs,
    bounds: Floats,  # NOISE_BOUNDS
) -> Longs:
    """The token of every row `[rows]`; −1 for a row that holds a NaN or nothing above −inf."""
    padded = (num_ids + CHUNK - 1) // CHUNK * CHUNK
    values = np.full(padded, -INF, np.float32)
    outside = np.zeros(padded, np.bool_)
    keys = np.empty(num_ids, np.int64)
    words = np.empty(CHUNK, np.uint32)
    chosen = np.empty(len(logits), np.int64)
    for row in range(len(logits)):
        is_greedy = temperature[row] == np.float32(0.0)
        divisor = np.float32(1.0) if is_greedy else temperature[row]
        num_nan = 0
        for i in range(num_ids):
            values[i] = logits[row, i] / divisor + np.float32(0.0)  # −0 becomes 0: equal values, equal keys
            num_nan += values[i] != values[i]
        if num_nan > 0:
            chosen[row] = -1
        elif is_greedy:
            largest = largest_of(values, 0, padded)
            best_id = 0
            while values[best_id] != largest:
                best_id += 1
            chosen[row] = best_id if largest > -INF else -1
        else:
            if mark_outside(values, num_ids, top_k[row], top_p[row], min_p[row], keys, outside):
                for i in range(num_ids):
                    values[i] = -INF if outside[i] else values[i]
            chosen[row] = _choose_noisy(values, 0, seeds[row], positions[row], words, bounds)[1]
    return chosen


@jit
def winning_keys(
    values: Floats,  # [rows, width] logits / T of the ids first_id …, −inf where an id is excluded; no −0
    first_id: int,
    seeds: Longs,
    positions: Longs,
    bounds: Floats,  # NOISE_BOUNDS
) -> Longs:
    """The greatest key of (value + noise, id) of every row `[rows]`; the least int64 for a row without a choice."""
    lead = first_id % CHUNK
    base = first_id - lead
    padded = (lead + values.shape[1] + CHUNK - 1) // CHUNK * CHUNK
    scratch = np.full(padded, -INF, np.float32)
    score = np.empty(1, np.float32)
    words = np.empty(CHUNK, np.uint32)
    keys = np.empty(len(values), np.int64)
    for row in range(len(values)):
        scratch[lead : lead + values.shape[1]] = values[row]
        best, place = _choose_noisy(scratch, base, seeds[row], positions[row], words, bounds)
        score[0] = best + np.float32(0.0)
        # The key of id 0, and every id after it is one less.
        keys[row] = NO_BORDER if place < 0 else key_of(score.view(np.int32), 0) - np.int64(base + place)
    return keys
