"""numba kernels for one CPU core: choosing tokens and ranking candidates without noise for every id or a full sort.

A row lives in a scratch buffer padded with −inf to whole chunks of `CHUNK` ids. Two exact bounds save the noise: a
chunk whose best logit plus the largest possible noise cannot win is skipped whole, and within a chunk an id is skipped
when its logit plus `NOISE_BOUNDS` of the top bits of its random word cannot win. What remains gets both logarithms.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dflash_core.jit import jit
from dflash_core.sampling.kernels_math import CHUNK, MOST_NOISE, fill_words, gumbel_chunk, gumbel_of, sum_of_exp

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Longs = npt.NDArray[np.int64]
Ints = npt.NDArray[np.int32]
Words = npt.NDArray[np.uint32]

NUM_BINS = 1024  # of (best − value), for the truncation border
BINS_PER_NAT = np.float32(32.0)
UNIT_MASS = 2.0**44  # of the best id, in fixed point as on the device: sums of it do not depend on their order
NEGLIGIBLE_NATS = np.float32(30.0)  # below the best: 150k such ids weigh 1.4e-8 of it together

_INF = np.float32(np.inf)
_ID_MASK = np.int64(0x7FFFFFFF)
_NO_BORDER = np.int64(np.iinfo(np.int64).min)


@jit
def _largest(values: Floats, start: int, stop: int) -> np.float32:
    """Maximum of values[start:stop] (a multiple of 4 values), in four independent chains; NaN never wins."""
    m0 = m1 = m2 = m3 = -_INF
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
def _key(bits: Ints, i: int) -> np.int64:
    """Orders (value, lowest id first) as one integer; `bits` views the values, which hold no −0."""
    ordered = bits[i] ^ ((bits[i] >> np.int32(31)) & np.int32(0x7FFFFFFF))
    return (np.int64(ordered) << np.int64(32)) | (_ID_MASK - np.int64(i))


@jit
def _gather_bin(values: Floats, num_ids: int, best: np.float32, wanted: int, border: np.int64, keys: Longs) -> int:
    """Sorts the keys from `border` on that fall into one bin, rising, into `keys`; returns how many."""
    bits = values.view(np.int32)
    count = 0
    for i in range(num_ids):
        if _bin(values[i], best) == wanted and _key(bits, i) >= border:
            keys[count] = _key(bits, i)
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
    border = _NO_BORDER
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
            if _key(bits, i) >= border:
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
def _mark_outside(
    values: Floats, num_ids: int, top_k: int, top_p: float, min_p: float, keys: Longs, outside: npt.NDArray[np.bool_]
) -> bool:
    """Sets `outside` to the ids that top-k, top-p and min-p exclude; returns False if all three are off."""
    if not (0 < top_k < num_ids or top_p < 1.0 or min_p > 0.0):
        return False
    best = _largest(values, 0, len(values))
    border = _border(values, num_ids, best, top_k, top_p, keys)
    floor = np.float32(math.log(np.float64(min_p))) if min_p > 0.0 else -_INF
    bits = values.view(np.int32)
    for i in range(num_ids):
        outside[i] = _key(bits, i) < border or not (values[i] - best >= floor)
    return True


@jit
def _choose_noisy(
    values: Floats, base: int, seed: int, position: int, words: Words, bounds: Floats
) -> tuple[np.float32, int]:
    """The largest of values + noise and its place, ties to the first; −inf and −1 when no value is above −inf.

    `values` are those of the ids from `base` on, a multiple of `CHUNK`.
    """
    largest = _largest(values, 0, len(values))
    if largest == -_INF:
        return largest, -1
    best_id = 0
    while values[best_id] != largest:
        best_id += 1
    fill_words(seed, position, base + best_id - best_id % CHUNK, words)
    best = largest + gumbel_of(words[best_id % CHUNK])
    for start in range(0, len(values), CHUNK):
        if _largest(values, start, start + CHUNK) + MOST_NOISE < best:
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
    values = np.full(padded, -_INF, np.float32)
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
            largest = _largest(values, 0, padded)
            best_id = 0
            while values[best_id] != largest:
                best_id += 1
            chosen[row] = best_id if largest > -_INF else -1
        else:
            if _mark_outside(values, num_ids, top_k[row], top_p[row], min_p[row], keys, outside):
                for i in range(num_ids):
                    values[i] = -_INF if outside[i] else values[i]
            chosen[row] = _choose_noisy(values, 0, seeds[row], positions[row], words, bounds)[1]
    return chosen


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
    scratch = np.full(padded, -_INF, np.float32)
    score = np.empty(1, np.float32)
    words = np.empty(CHUNK, np.uint32)
    keys = np.empty(len(values), np.int64)
    for row in range(len(values)):
        scratch[lead : lead + values.shape[1]] = values[row]
        best, place = _choose_noisy(scratch, base, seeds[row], positions[row], words, bounds)
        score[0] = best + np.float32(0.0)
        # The key of id 0, and every id after it is one less.
        keys[row] = _NO_BORDER if place < 0 else _key(score.view(np.int32), 0) - np.int64(base + place)
    return keys


@jit
def _insert_chunk(chunk: Floats, start: int, num_ids: int, count: int, ids: Ints, scores: Floats) -> int:
    """Inserts the values of ids `start` … into the best `count` so far, sorted; returns the new count."""
    for i in range(min(CHUNK, num_ids - start)):
        value = chunk[i]
        if count == len(ids) and not value > scores[count - 1]:
            continue
        j = min(count, len(ids) - 1)
        count = j + 1
        while j > 0 and value > scores[j - 1]:
            scores[j], ids[j] = scores[j - 1], ids[j - 1]
            j -= 1
        scores[j], ids[j] = value, start + i
    return count


@jit
def rank_rows(
    logits: Floats,  # [rows, width]
    num_ids: int,
    temperature: Floats,
    top_k: Ints,
    top_p: Floats,
    min_p: Floats,
    seeds: Longs,
    positions: Longs,
    noise_scale: Floats,  # [rows]; 0 is without noise
    truncation_penalty: Floats,  # [rows]
    sharpness: np.float32,
    ids: Ints,  # [rows, K], out
    scores: Floats,  # [rows, K], out
) -> None:
    """The K best ids of every row and their log-probabilities, as `candidates.rank_candidates` defines them."""
    num_candidates = ids.shape[1]
    padded = (num_ids + CHUNK - 1) // CHUNK * CHUNK
    values = np.full(padded, -_INF, np.float32)
    outside = np.zeros(padded, np.bool_)
    keys = np.empty(num_ids, np.int64)
    words = np.empty(CHUNK, np.uint32)
    noise, mantissas = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    exponents = np.empty(CHUNK, np.int32)
    for row in range(len(logits)):
        is_greedy = temperature[row] == np.float32(0.0)
        row_noise_scale = np.float32(0.0) if is_greedy else noise_scale[row]
        is_noisy = row_noise_scale > np.float32(0.0)
        scale = np.float32(1.0) if is_greedy else sharpness
        if not is_greedy:
            for i in range(num_ids):
                values[i] = logits[row, i] / temperature[row] + np.float32(0.0)
        is_truncated = not is_greedy and _mark_outside(
            values, num_ids, top_k[row], top_p[row], min_p[row], keys, outside
        )
        for i in range(num_ids):
            values[i] = logits[row, i]
        best, least, count = -_INF, -_INF, 0
        for start in range(0, padded, CHUNK):
            chunk = values[start : start + CHUNK]
            most = (_largest(chunk, 0, CHUNK) + row_noise_scale * MOST_NOISE) / scale
            if count == num_candidates and most <= least and most < best - NEGLIGIBLE_NATS:
                chunk[:] = -_INF
                continue
            if is_noisy:
                fill_words(seeds[row], positions[row], start, words)
                gumbel_chunk(words, noise, exponents, mantissas)
                for i in range(CHUNK):
                    chunk[i] += row_noise_scale * noise[i]
            if is_truncated:
                for i in range(CHUNK):
                    chunk[i] -= truncation_penalty[row] if outside[start + i] else np.float32(0.0)
            if scale != np.float32(1.0):
                for i in range(CHUNK):
                    chunk[i] /= scale
            most = _largest(chunk, 0, CHUNK)
            best = most if most > best else best
            if count < num_candidates or most > least:
                count = _insert_chunk(chunk, start, num_ids, count, ids[row], scores[row])
                least = scores[row, count - 1]
        log_total = np.float64(best) + math.log(sum_of_exp(values, best)) if best > -_INF else 0.0
        for j in range(num_candidates):
            scores[row, j] = np.float32(np.float64(scores[row, j]) - log_total)
