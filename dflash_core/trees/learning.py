"""Learning from a round: one pass over what the target wrote after each draft.

After an accepted path of `a` nodes the target's tokens at depths 1 … a + 1 are known, and so is for each of these
depths which candidate, if any, was right: every rank is an observation, whether its node was in the tree or not.
"""

from __future__ import annotations

import math

import numpy as np

from dflash_core.jit import jit
from dflash_core.trees.scoring import (
    DEPTH_BIAS,
    DEPTH_SLOPE,
    LONGEST_MATCH,
    MATCH_BIAS,
    MATCH_SLOPE,
    NOT_A_CANDIDATE,
    NUM_BUCKETS,
    RANK_BIAS,
    Doubles,
    Histories,
    Ints,
    Longs,
    acceptance,
    longest_match,
    match_bucket,
    rank_bucket,
)
from dflash_core.trees.search import Candidates

_MOST_RANKS = 16  # later ones are hardly ever right, and cost as much
# Adagrad whose memory fades: some thousand observations of a parameter back, the pair may have behaved otherwise.
_STEP, _FADING = 0.5, 0.9995
_LOGIT_SCALE = 0.3
_MOST_BIAS, _MOST_SLOPE = 8.0, 3.0


@jit
def _descend(
    parameters: Doubles, squares: Doubles, kind: int, bucket: int, gradient: float, step: float, most: float
) -> None:
    total = squares[kind, bucket] * _FADING + gradient * gradient
    squares[kind, bucket] = total
    moved = parameters[kind, bucket] - step * gradient / math.sqrt(total + 1.0)
    parameters[kind, bucket] = min(most, max(-most, moved))


@jit
def _observe(
    parameters: Doubles,  # [NUM_KINDS, NUM_BUCKETS]
    squares: Doubles,
    depth: int,
    rank: int,
    match: int,
    logit: float,
    was_right: bool,
) -> None:
    error = acceptance(parameters, depth, rank, match, logit) - (1.0 if was_right else 0.0)
    depth_bucket = min(depth - 1, NUM_BUCKETS - 1)
    _descend(parameters, squares, DEPTH_BIAS, depth_bucket, error, _STEP, _MOST_BIAS)
    _descend(parameters, squares, RANK_BIAS, rank, error, _STEP, _MOST_BIAS)
    _descend(parameters, squares, MATCH_BIAS, match, error, _STEP, _MOST_BIAS)
    # A logit is some times larger than the 1 of a bias: as a feature it is scaled down, and its weight with it.
    gradient, step = error * logit * _LOGIT_SCALE, _STEP * _LOGIT_SCALE
    _descend(parameters, squares, DEPTH_SLOPE, depth_bucket, gradient, step, _MOST_SLOPE)
    _descend(parameters, squares, MATCH_SLOPE, match, gradient, step, _MOST_SLOPE)


@jit
def learn(
    candidates: Candidates,
    histories: Histories,  # as they were when the trees were built
    parameters: Doubles,  # [NUM_CLASSES, 2, NUM_KINDS, NUM_BUCKETS], changed
    squares: Doubles,  # the same, changed
    committed: Ints,  # tokens that the target wrote after the roots, all sequences
    starts: Longs,  # [sequences + 1]
) -> None:
    tail = np.empty(LONGEST_MATCH, np.int32)
    for sequence in range(len(candidates.roots)):
        slot, ranks = candidates.slots[sequence], candidates.num_ranks[sequence]
        is_off_spine = 0
        group = candidates.classes[sequence]
        num_known = min(starts[sequence + 1] - starts[sequence], candidates.max_depths[sequence])
        for depth in range(1, num_known + 1):
            begin = candidates.offsets[sequence] + (depth - 1) * ranks
            truth = committed[starts[sequence] + depth - 1]
            table, sums = parameters[group, is_off_spine], squares[group, is_off_spine]
            continuation, match_len = -1, 0
            if slot >= 0:
                num_tokens = histories.lens[slot]
                for back in range(LONGEST_MATCH):
                    in_path = depth - 2 - back
                    position = num_tokens + in_path
                    if in_path >= 0:
                        tail[back] = committed[starts[sequence] + in_path]
                    else:
                        tail[back] = histories.tokens[slot, position] if position >= 0 else -1
                continuation, match_len = longest_match(
                    tail, histories.tokens[slot], num_tokens, histories.links[slot], histories.heads[slot]
                )
            missed, hit = match_bucket(match_len, False), match_bucket(match_len, True)
            is_listed, last = False, 0.0
            for rank in range(ranks):
                token, logit = candidates.token_ids[begin + rank], candidates.logits[begin + rank]
                if not logit > -np.inf:
                    break
                last = logit
                is_continuation = match_len > 0 and token == continuation
                is_listed |= is_continuation
                if is_continuation or rank < _MOST_RANKS:
                    match = hit if is_continuation else missed
                    _observe(table, sums, depth, rank_bucket(rank), match, logit, token == truth)
            if match_len > 0 and not is_listed:
                _observe(table, sums, depth, NOT_A_CANDIDATE, hit, last, continuation == truth)
            is_off_spine |= 1 if candidates.token_ids[begin] != truth else 0
