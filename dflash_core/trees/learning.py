"""Learning from a round: one pass over what the target wrote after each draft.

After an accepted path of `a` nodes the target's tokens at depths 1 … a + 1 are known, and so is for each of these
depths which candidate, if any, was right: every rank is an observation, whether its node was in the tree or not.
"""

from __future__ import annotations

import math

import numpy as np

from dflash_core.jit import jit
from dflash_core.trees.matches import Histories, bigram_bucket, is_marked, longest_match
from dflash_core.trees.packed import Candidates
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
    Ints,
    Longs,
    acceptance,
    is_candidate,
    logit_of,
    match_bucket,
    rank_bucket,
)

MOST_RANKS = 16  # later ones are hardly ever right, and cost as much
# Adagrad whose memory fades: some thousand steps of a parameter back, the pair may have behaved otherwise.
STEP, FADING = 0.5, 0.9995
LOGIT_SCALE = 0.3  # a logit is some times larger than the 1 of a bias: as a feature it is scaled down, its weight too
MOST_BIAS, MOST_SLOPE = 8.0, 3.0


@jit
def _descend(
    parameters: Doubles,
    squares: Doubles,
    group: int,
    spine: int,
    kind: int,
    bucket: int,
    gradient: float,
    step: float,
    most: float,
) -> None:
    total = squares[group, spine, kind, bucket] * FADING + gradient * gradient
    squares[group, spine, kind, bucket] = total
    moved = parameters[group, spine, kind, bucket] - step * gradient / math.sqrt(total + 1.0)
    parameters[group, spine, kind, bucket] = min(most, max(-most, moved))


@jit
def learn(
    candidates: Candidates,
    histories: Histories,  # as they were when the trees were built
    parameters: Doubles,  # [NUM_CLASSES, 2, NUM_KINDS, NUM_BUCKETS], changed
    squares: Doubles,  # the same, changed
    committed: Ints,  # tokens that the target wrote after the roots, all sequences
    starts: Longs,  # [sequences + 1]
) -> None:
    """One step per depth whose token is known, along the summed gradient of its candidates."""
    tail = np.empty(LONGEST_MATCH, np.int32)
    # Gradients of a depth's biases by bucket of rank and match, and of its slopes by bucket of match.
    of_ranks, of_matches, of_slopes = np.zeros(NUM_BUCKETS), np.zeros(NUM_BUCKETS), np.zeros(NUM_BUCKETS)
    token_ids, scores = candidates.token_ids, candidates.scores
    for sequence in range(len(candidates.roots)):
        group, num_ranks = candidates.classes[sequence], candidates.num_ranks[sequence]
        slot = candidates.slots[sequence]
        start = starts[sequence]
        num_known = min(starts[sequence + 1] - start, candidates.max_depths[sequence])
        spine = 0
        for depth in range(1, num_known + 1):
            first = candidates.offsets[sequence] + (depth - 1) * num_ranks
            truth = committed[start + depth - 1]
            continuation, match_len = -1, 0
            if slot >= 0:
                history, num_tokens = histories.tokens[slot], histories.lens[slot]
                for back in range(LONGEST_MATCH):
                    in_path = depth - 2 - back
                    position = num_tokens + in_path
                    if in_path >= 0:
                        tail[back] = committed[start + in_path]
                    else:
                        tail[back] = history[position] if position >= 0 else -1
                bucket = bigram_bucket(tail[1], tail[0], histories.heads.shape[1])
                if is_marked(histories.marks[slot], bucket):
                    continuation, match_len = longest_match(
                        tail, history, num_tokens, histories.links[slot], histories.heads[slot]
                    )
            missed, hit = match_bucket(match_len, False), match_bucket(match_len, True)
            tables = parameters[group]
            is_listed, last = False, -np.inf
            most_rank_bucket = 0
            for rank in range(num_ranks):
                if not is_candidate(scores[first + rank]):
                    break
                last = scores[first + rank]
                token = token_ids[first + rank]
                is_continuation = match_len > 0 and token == continuation
                is_listed |= is_continuation
                if is_continuation or rank < MOST_RANKS:
                    match, bucket = hit if is_continuation else missed, rank_bucket(rank)
                    logit = logit_of(last)
                    error = acceptance(tables, spine, depth, bucket, match, logit) - (1.0 if token == truth else 0.0)
                    of_ranks[bucket] += error
                    of_matches[match] += error
                    of_slopes[match] += error * logit * LOGIT_SCALE
                    most_rank_bucket = bucket
            if match_len > 0 and not is_listed:
                logit = logit_of(last)
                error = acceptance(tables, spine, depth, NOT_A_CANDIDATE, hit, logit)
                error -= 1.0 if continuation == truth else 0.0
                of_ranks[NOT_A_CANDIDATE] += error
                of_matches[hit] += error
                of_slopes[hit] += error * logit * LOGIT_SCALE
                most_rank_bucket = NOT_A_CANDIDATE
            depth_bucket = min(depth - 1, NUM_BUCKETS - 1)
            scaled = STEP * LOGIT_SCALE
            of_depth = of_matches[missed] + (of_matches[hit] if hit != missed else 0.0)
            of_depth_slope = of_slopes[missed] + (of_slopes[hit] if hit != missed else 0.0)
            _descend(parameters, squares, group, spine, DEPTH_BIAS, depth_bucket, of_depth, STEP, MOST_BIAS)
            _descend(parameters, squares, group, spine, DEPTH_SLOPE, depth_bucket, of_depth_slope, scaled, MOST_SLOPE)
            for bucket in range(most_rank_bucket + 1):
                _descend(parameters, squares, group, spine, RANK_BIAS, bucket, of_ranks[bucket], STEP, MOST_BIAS)
                of_ranks[bucket] = 0.0
            for match in range(missed, hit + 1):
                _descend(parameters, squares, group, spine, MATCH_BIAS, match, of_matches[match], STEP, MOST_BIAS)
                _descend(parameters, squares, group, spine, MATCH_SLOPE, match, of_slopes[match], scaled, MOST_SLOPE)
                of_matches[match] = of_slopes[match] = 0.0
            if num_ranks == 0 or not is_candidate(scores[first]) or token_ids[first] != truth:
                spine = 1
