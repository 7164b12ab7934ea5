"""Learning from a round: one pass over what the target wrote after each draft.

After an accepted path of `a` nodes the target's tokens at depths 1 … a + 1 are known, and so is for each of these
depths which candidate, if any, was right: every rank is an observation, whether its node was in the tree or not.
"""

from __future__ import annotations

import math

import numpy as np

from dflash_core.jit import jit, jit_borrowing
from dflash_core.trees.matches import Histories, bigram_bucket, is_marked, longest_match
from dflash_core.trees.packed import Candidates
from dflash_core.trees.scoring import (
    LONGEST_MATCH,
    MATCH_BIAS,
    MATCH_SLOPE,
    NONE_BIAS,
    NONE_SLOPE,
    NOT_A_CANDIDATE,
    NUM_BUCKETS,
    RANK_BIAS,
    SHORTEST_MATCH,
    SLOPE,
    Doubles,
    Ints,
    Longs,
    candidate_weight,
    depth_bucket,
    is_candidate,
    log_left,
    log_of,
    match_weight,
    none_weight,
    rank_bucket,
)

# Adagrad whose memory fades: some thousand steps of a parameter back, the pair may have behaved otherwise.
STEP, FADING = 0.5, 0.9995
LOG_SCALE = 0.3  # a logarithm is some times larger than the 1 of a bias: as a feature it is scaled down, its weight too
MOST_BIAS, MOST_SLOPE = 8.0, 3.0


@jit_borrowing
def _descend(table: Doubles, squares: Doubles, kind: int, bucket: int, gradient: float, scale: float) -> None:
    """`scale` of a slope's feature: LOG_SCALE; of a bias: 1."""
    gradient *= scale
    total = squares[kind, bucket] * FADING + gradient * gradient
    squares[kind, bucket] = total
    moved = table[kind, bucket] - STEP * scale * gradient / math.sqrt(total + 1.0)
    most = MOST_BIAS if scale == 1.0 else MOST_SLOPE
    table[kind, bucket] = min(most, max(-most, moved))


@jit
def learn(
    candidates: Candidates,
    histories: Histories,  # as they were when the trees were built
    parameters: Doubles,  # [NUM_CLASSES, 2, NUM_KINDS, NUM_BUCKETS], changed
    squares: Doubles,  # the same, changed
    committed: Ints,  # tokens that the target wrote after the roots, all sequences
    starts: Longs,  # [sequences + 1]
) -> None:
    """One step per depth whose token is known, along the gradient of its negative log-likelihood."""
    tail = np.empty(LONGEST_MATCH, np.int32)
    most_ranks = 0
    for num_ranks in candidates.num_ranks:
        most_ranks = max(most_ranks, num_ranks)
    weights = np.empty(most_ranks, np.float64)
    of_ranks = np.zeros(NUM_BUCKETS)  # the gradient of the biases of ranks
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
            table, sums, deep = parameters[group, spine], squares[group, spine], depth_bucket(depth)
            num_listed, total, said, match_rank, true_rank, last = 0, 0.0, 0.0, -1, -1, -np.inf
            while num_listed < num_ranks and is_candidate(scores[first + num_listed]):
                token, last = token_ids[first + num_listed], log_of(scores[first + num_listed])
                if match_len > 0 and token == continuation:
                    match_rank = num_listed
                    weight = match_weight(table, deep, rank_bucket(num_listed), match_len, last)
                else:
                    weight = candidate_weight(table, deep, rank_bucket(num_listed), last)
                if token == truth:
                    true_rank = num_listed
                weights[num_listed] = weight
                total += weight
                said += math.exp(last)
                num_listed += 1
            last = log_of(last)
            of_match, of_match_slope, of_slope, most_bucket = 0.0, 0.0, 0.0, -1
            unlisted = 0.0
            if match_len > 0 and match_rank < 0:
                unlisted = match_weight(table, deep, NOT_A_CANDIDATE, match_len, last)
                total += unlisted
            left = log_left(said)
            none = none_weight(table, deep, left)
            total += none
            for rank in range(num_listed):
                error = weights[rank] / total - (1.0 if rank == true_rank else 0.0)
                log_q, most_bucket = log_of(scores[first + rank]), rank_bucket(rank)
                of_ranks[most_bucket] += error
                of_slope += error * log_q
                if rank == match_rank:
                    of_match, of_match_slope = error, error * log_q
            is_known = true_rank >= 0
            if unlisted > 0.0:
                error = unlisted / total - (1.0 if continuation == truth else 0.0)
                is_known |= continuation == truth
                of_ranks[NOT_A_CANDIDATE] += error
                of_slope += error * last
                of_match, of_match_slope = error, error * last
                most_bucket = NOT_A_CANDIDATE
            of_none = none / total - (0.0 if is_known else 1.0)
            _descend(table, sums, SLOPE, deep, of_slope, LOG_SCALE)
            for bucket in range(most_bucket + 1):
                _descend(table, sums, RANK_BIAS, bucket, of_ranks[bucket], 1.0)
                of_ranks[bucket] = 0.0
            _descend(table, sums, NONE_SLOPE, deep, of_none * left, LOG_SCALE)
            _descend(table, sums, NONE_BIAS, deep, of_none, 1.0)
            if match_len > 0:
                _descend(table, sums, MATCH_SLOPE, match_len - SHORTEST_MATCH, of_match_slope, LOG_SCALE)
                _descend(table, sums, MATCH_BIAS, match_len - SHORTEST_MATCH, of_match, 1.0)
            if true_rank != 0:
                spine = 1
