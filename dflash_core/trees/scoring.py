"""The probability that a node is accepted, given that its parent is: arithmetic shared by search and learning.

numba's cache of `search` and `learning`, which inline this, does not see a change here: touch those files too.
"""

from __future__ import annotations

from typing import NamedTuple

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

# Depths from 1 on, the deepest share one bucket. Ranks 0, 1, 2, 3–4, 5–7, 8–15, 16 and more, not among the candidates.
NOT_A_CANDIDATE = 7
# 0: the path's last two tokens are new to the sequence. Else by the length of the match, 2 … 5, and whether the
# candidate is the token that followed there.
NO_MATCH, SHORTEST_MATCH, LONGEST_MATCH = 0, 2, 5

# Of a chain of positions with the same two tokens, the latest are compared.
_MOST_COMPARED = 4
_LEAST_LOG, _MOST_LOG = np.float32(-16.0), np.float32(-1e-6)

# The logistic function between −_REACH and _REACH, by linear interpolation: within 1e-5 of its value, and much faster.
_REACH, _STEPS = 24, 128  # steps per unit
_LOGISTIC = 1.0 / (1.0 + np.exp(-(np.arange(2 * _REACH * _STEPS + 2) / _STEPS - _REACH)))


class Histories(NamedTuple):
    """The arrays of `TokenHistories`."""

    tokens: Ints  # [slots, window], committed
    lens: Longs  # [slots]
    links: Ints  # [slots, window], 1 + the position before with the same bigram bucket; 0 ends the chain
    heads: Ints  # [slots, buckets], 1 + the latest position of the bucket; 0: none


def logits_of(log_probabilities: Floats) -> Floats:
    """log(q / (1 − q)) of log(q), bounded; −inf for what is no candidate (−inf or NaN)."""
    bounded = np.clip(log_probabilities, _LEAST_LOG, _MOST_LOG)
    logits = bounded - np.log(-np.expm1(bounded))
    logits[~(log_probabilities > -np.inf)] = -np.inf
    return logits.astype(np.float32, copy=False)


@jit
def rank_bucket(rank: int) -> int:
    if rank < 3:
        return rank
    if rank < 5:
        return 3
    if rank < 8:
        return 4
    return 5 if rank < 16 else 6


@jit
def match_bucket(match_len: int, is_continuation: bool) -> int:
    if match_len < SHORTEST_MATCH:
        return NO_MATCH
    return 1 + 2 * (match_len - SHORTEST_MATCH) + (1 if is_continuation else 0)


@jit
def acceptance(table: Doubles, depth: int, rank: int, match: int, logit: float) -> float:
    """Of a candidate at bucket `rank`; `table` [NUM_KINDS, NUM_BUCKETS] is that of its context class and spine."""
    depth_bucket = min(depth - 1, NUM_BUCKETS - 1)
    slope = table[DEPTH_SLOPE, depth_bucket] + table[MATCH_SLOPE, match]
    z = table[DEPTH_BIAS, depth_bucket] + table[RANK_BIAS, rank] + table[MATCH_BIAS, match] + slope * logit
    place = (min(max(z, -_REACH), _REACH) + _REACH) * _STEPS
    step = int(place)
    below: float = _LOGISTIC[step]
    above: float = _LOGISTIC[step + 1]
    probability: float = below + (place - step) * (above - below)
    return probability


@jit
def bigram_bucket(before: int, token: int, num_buckets: int) -> int:
    """`num_buckets` is a power of two."""
    return ((before * 1_000_003) ^ (token * 7_919)) & (num_buckets - 1)


@jit
def longest_match(
    tail: Ints,  # [LONGEST_MATCH], the path's last token first; −1 where there is none
    tokens: Ints,  # [window], committed
    num_tokens: int,
    links: Ints,  # [window], 1 + the position before with the same bigram bucket; 0 ends the chain
    heads: Ints,  # [buckets], 1 + the latest position of the bucket
) -> tuple[int, int]:
    """The token that followed where the sequence last had most of the tail's tokens, and how many; (−1, 0) for none."""
    best_len, best_token = 0, -1
    if tail[1] < 0:
        return best_token, best_len
    num_compared = 0
    position = heads[bigram_bucket(tail[1], tail[0], len(heads))] - 1
    while position >= 0 and num_compared < _MOST_COMPARED:
        # The last token has no continuation yet. Another bigram may share the bucket.
        if position + 1 < num_tokens and tokens[position] == tail[0] and tokens[position - 1] == tail[1]:
            num_compared += 1
            match_len = SHORTEST_MATCH
            while (
                match_len < LONGEST_MATCH and position >= match_len and tokens[position - match_len] == tail[match_len]
            ):
                match_len += 1
            if match_len > best_len:
                best_len, best_token = match_len, tokens[position + 1]
                if best_len == LONGEST_MATCH:
                    break
        position = links[position] - 1
    return best_token, best_len
