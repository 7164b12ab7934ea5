"""The probability that a node is accepted, given that its parent is: arithmetic shared by search and learning.

numba's cache of `search` and `learning`, which inline this, does not see a change here: touch those files too.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dflash_core.jit import jit

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

# Where a candidate's features point into the parameters [context class, off the spine, kind, bucket]:
# z = depth_bias + rank_bias + match_bias + (depth_slope + match_slope) · logit(q), probability = 1 / (1 + exp(−z)).
DEPTH_BIAS, DEPTH_SLOPE, RANK_BIAS, MATCH_BIAS, MATCH_SLOPE = range(5)
NUM_KINDS, NUM_BUCKETS = 5, 16

# Depths from 1 on, the deepest share one bucket. Ranks 0, 1, 2, 3–4, 5–7, 8 and more, not among the candidates.
NOT_A_CANDIDATE = 6
# 0: the path's last two tokens are new to the sequence. Else by the length of the match, 2 … 5, and whether the
# candidate is the token that followed there.
NO_MATCH, SHORTEST_MATCH, LONGEST_MATCH = 0, 2, 5

_LEAST_LOG, _MOST_LOG = -16.0, -1e-6


@jit
def is_candidate(score: float) -> bool:
    """False for −inf and NaN, which end a depth's list."""
    return score > -np.inf


@jit
def logit_of(score: float) -> float:
    """log(q / (1 − q)) of a candidate's log(q), bounded."""
    bounded = min(max(score, _LEAST_LOG), _MOST_LOG)
    return bounded - math.log(1.0 - math.exp(bounded))


@jit
def rank_bucket(rank: int) -> int:
    if rank < 3:
        return rank
    if rank < 5:
        return 3
    return 4 if rank < 8 else 5


@jit
def match_bucket(match_len: int, is_continuation: bool) -> int:
    if match_len < SHORTEST_MATCH:
        return NO_MATCH
    return 1 + 2 * (match_len - SHORTEST_MATCH) + (1 if is_continuation else 0)


@jit
def acceptance(
    tables: Doubles,  # [2, NUM_KINDS, NUM_BUCKETS] of a context class, on the spine and off it
    is_off_spine: int,
    depth: int,
    rank: int,  # its bucket
    match: int,  # its bucket
    logit: float,
) -> float:
    """The probability of one candidate."""
    depth_bucket = min(depth - 1, NUM_BUCKETS - 1)
    slope = tables[is_off_spine, DEPTH_SLOPE, depth_bucket] + tables[is_off_spine, MATCH_SLOPE, match]
    z = tables[is_off_spine, DEPTH_BIAS, depth_bucket] + tables[is_off_spine, RANK_BIAS, rank]
    z += tables[is_off_spine, MATCH_BIAS, match] + slope * logit
    return 1.0 / (1.0 + math.exp(-z))
