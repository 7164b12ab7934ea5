"""numba kernels for one CPU core: ranking candidates without noise for every id or a full sort.

A row lives in a scratch buffer padded with −inf to whole chunks of `CHUNK` ids. A chunk whose best logit plus the
largest possible noise can neither be a candidate nor weigh anything is skipped whole.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dflash_core.jit import jit
from dflash_core.sampling.kernels_math import CHUNK, MOST_NOISE, fill_words, gumbel_chunk, sum_of_exp
from dflash_core.sampling.kernels_truncation import INF, largest_of, mark_outside

Floats = npt.NDArray[np.float32]
Longs = npt.NDArray[np.int64]
Ints = npt.NDArray[np.int32]

NEGLIGIBLE_NATS = np.float32(30.0)  # below the best: 150k such ids weigh 1.4e-8 of it together


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
    values = np.full(padded, -INF, np.float32)
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
        is_truncated = not is_greedy and mark_outside(
            values, num_ids, top_k[row], top_p[row], min_p[row], keys, outside
        )
        for i in range(num_ids):
            values[i] = logits[row, i]
        best, least, count = -INF, -INF, 0
        for start in range(0, padded, CHUNK):
            chunk = values[start : start + CHUNK]
            most = (largest_of(chunk, 0, CHUNK) + row_noise_scale * MOST_NOISE) / scale
            if count == num_candidates and most <= least and most < best - NEGLIGIBLE_NATS:
                chunk[:] = -INF
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
            most = largest_of(chunk, 0, CHUNK)
            best = most if most > best else best
            if count < num_candidates or most > least:
                count = _insert_chunk(chunk, start, num_ids, count, ids[row], scores[row])
                least = scores[row, count - 1]
        log_total = np.float64(best) + math.log(sum_of_exp(values, best)) if best > -INF else 0.0
        for j in range(num_candidates):
            scores[row, j] = np.float32(np.float64(scores[row, j]) - log_total)
