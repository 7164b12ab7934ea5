"""The probabilities that a node's children are accepted, given that it is: arithmetic shared by search and learning.

One of the drafter's candidates is right or none is, and one more may be known from the sequence's own history. Of each
there is a weight; what is likely is a weight's part of their sum.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dflash_core.jit import jit_borrowing

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

# Where features point into the parameters [context class, off the spine, kind, bucket]. With q a candidate's
# probability as the drafter has it:
#   weight of a candidate = exp(slope[depth] · log q + rank_bias[rank])
#   of the token that followed in the history = exp((slope[depth] + match_slope[length]) · log q + rank_bias[rank]
#       + match_bias[length])
#   of none of them = exp(none_slope[depth] · log(1 − Σ q) + none_bias[depth])
SLOPE, RANK_BIAS, NONE_SLOPE, NONE_BIAS, MATCH_SLOPE, MATCH_BIAS = range(6)
NUM_KINDS, NUM_BUCKETS = 6, 16

# Depths from 1 on, the deepest share one bucket. Ranks 0, 1, 2, 3–4, 5–7, 8 and more, not among the candidates.
NOT_A_CANDIDATE = 6
# Tokens of the path's end that the sequence had before: fewer are no match, more count as so many.
SHORTEST_MATCH, LONGEST_MATCH = 2, 5

_LEAST_LOG = -16.0
_LEAST_LEFT = 1e-5  # of 1 − Σ q, which float32 scores do not give more exactly


@jit_borrowing
def is_candidate(score: float) -> bool:
    """False for −inf and NaN, which end a depth's list."""
    return score > -np.inf


@jit_borrowing
def log_of(score: float) -> float:
    """A candidate's log q, bounded."""
    return min(max(score, _LEAST_LOG), 0.0)


@jit_borrowing
def log_left(total: float) -> float:
    """log(1 − Σ q), bounded."""
    return math.log(max(1.0 - total, _LEAST_LEFT))


@jit_borrowing
def depth_bucket(depth: int) -> int:
    return min(depth - 1, NUM_BUCKETS - 1)


@jit_borrowing
def rank_bucket(rank: int) -> int:
    if rank < 3:
        return rank
    if rank < 5:
        return 3
    return 4 if rank < 8 else 5


@jit_borrowing
def candidate_weight(table: Doubles, depth: int, rank: int, log_q: float) -> float:
    return math.exp(log_weight(table, depth, rank, log_q))


@jit_borrowing
def log_weight(table: Doubles, depth: int, rank: int, log_q: float) -> float:
    """`table` `[NUM_KINDS, NUM_BUCKETS]`: of the context class, on or off the spine; `depth` and `rank`: buckets."""
    found: float = table[SLOPE, depth] * log_q + table[RANK_BIAS, rank]
    return found


@jit_borrowing
def match_weight(table: Doubles, depth: int, rank: int, match_len: int, log_q: float) -> float:
    """`log_q` of a token that is not among the candidates: the last one's, to which it is less likely than all."""
    match = match_len - SHORTEST_MATCH
    slope = table[SLOPE, depth] + table[MATCH_SLOPE, match]
    return math.exp(slope * log_q + table[RANK_BIAS, rank] + table[MATCH_BIAS, match])


@jit_borrowing
def none_weight(table: Doubles, depth: int, log_left_over: float) -> float:
    return math.exp(table[NONE_SLOPE, depth] * log_left_over + table[NONE_BIAS, depth])
