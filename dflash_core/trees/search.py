"""The likeliest nodes of a whole batch, and how many of them to take.

DDTree (arXiv 2604.12989) takes nodes from a heap, best first. Over many sequences a heap spends most of its time
sifting; but a node's probability never exceeds its parent's or its likelier sibling's, so a walk in preorder that turns
back below a threshold finds exactly the nodes above it. The threshold is that of the round before, halved; where the
nodes found do not suffice, the walk is repeated with a lower one, so that the outcome does not depend on it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dflash_core.jit import jit
from dflash_core.trees.scoring import (
    LONGEST_MATCH,
    NOT_A_CANDIDATE,
    SHORTEST_MATCH,
    Doubles,
    Floats,
    Histories,
    Ints,
    Longs,
    acceptance,
    longest_match,
    match_bucket,
    rank_bucket,
)

MAX_WEIGHT = 8.0
FLOOR = 2 * MAX_WEIGHT  # added to the keys of nodes that a sequence gets in any case
NEGLIGIBLE = 1e-9  # a candidate less likely than this is none

_LIVE, _EXHAUSTED, _PRUNED = range(3)


class Candidates(NamedTuple):
    """What a batch brings to the search: one entry per sequence, unless said otherwise."""

    roots: Ints  # their tokens
    token_ids: Ints  # all candidates of all sequences, depth by depth
    logits: Floats  # of the drafter's probability, falling in rank; −inf ends a depth's list
    offsets: Longs  # where its candidates start
    num_ranks: Longs  # K
    max_depths: Longs
    min_nodes: Longs
    max_nodes: Longs
    max_widths: Longs  # most children of a node
    weights: Doubles  # of its tokens against those of the others, ≤ MAX_WEIGHT
    classes: Longs  # context class
    slots: Longs  # of its history; −1: none


class Found(NamedTuple):
    """Nodes without roots, sequence after sequence, each in preorder with the likeliest child first."""

    tokens: Ints  # [nodes]
    depths: Ints  # [nodes], from 1 on
    keys: Doubles  # [nodes]: weighted probability that the node and all above it are accepted, FLOOR more where due
    ends: Longs  # [sequences], where a sequence's nodes end
    is_complete: bool  # nothing lies below the threshold


# The path that the walk is on, one row per depth, the root's first. Of the children of a row's node: which come next.
_PROBABILITY, _LAST_CHILD, _MASS_LEFT, _MATCH_PROBABILITY, _NUM_REALS = range(5)
_TOKEN, _OFF_SPINE, _NEXT_RANK, _NUM_CHILDREN, _MATCH_TOKEN, _MATCH_LEN, _MATCH_RANK, _NUM_INTS = range(8)


# Arrays one by one: in a tuple, numba counts references to each of them at every call.
@jit
def _enter(
    reals: Doubles,  # [levels, _NUM_REALS]
    ints: Longs,  # [levels, _NUM_INTS]
    level: int,
    history: Ints,  # [window]
    history_len: int,  # 0: there is none
    links: Ints,
    heads: Ints,
    tail: Ints,
) -> None:
    """Makes ready for the children of the node at `level`: how did the sequence go on after such tokens before?"""
    ints[level, _NEXT_RANK] = 0
    ints[level, _NUM_CHILDREN] = 0
    reals[level, _LAST_CHILD] = 1.0  # probability of the child before, given this node
    reals[level, _MASS_LEFT] = 1.0  # children exclude each other: their probabilities sum to 1 at most
    reals[level, _MATCH_PROBABILITY] = -1.0  # there is none, or it is taken
    ints[level, _MATCH_LEN] = 0
    ints[level, _MATCH_RANK] = -1  # among the drafter's candidates; −1: it is none of them
    if history_len == 0:
        return
    for back in range(LONGEST_MATCH):
        above = level - back
        position = history_len - 1 + above
        if above > 0:
            tail[back] = ints[above, _TOKEN]
        else:
            tail[back] = history[position] if position >= 0 else -1
    token, match_len = longest_match(tail, history, history_len, links, heads)
    if match_len >= SHORTEST_MATCH:
        ints[level, _MATCH_TOKEN], ints[level, _MATCH_LEN] = token, match_len


@jit
def _rate_match(
    reals: Doubles,
    ints: Longs,
    level: int,
    token_ids: Ints,  # all candidates
    logits: Floats,
    begin: int,  # where those of this depth start
    ranks: int,
    tables: Doubles,  # [2, NUM_KINDS, NUM_BUCKETS], on the spine and off it
) -> None:
    """How likely the sequence goes on as before, where it has been here before."""
    rank, last = -1, 0
    for i in range(ranks):
        if not logits[begin + i] > -np.inf:
            break
        last = i
        if token_ids[begin + i] == ints[level, _MATCH_TOKEN]:
            rank = i
            break
    ints[level, _MATCH_RANK] = rank
    reals[level, _MATCH_PROBABILITY] = acceptance(
        tables[ints[level, _OFF_SPINE]],
        level + 1,
        rank_bucket(rank) if rank >= 0 else NOT_A_CANDIDATE,
        match_bucket(ints[level, _MATCH_LEN], True),
        logits[begin + last],
    )


@jit
def _next_child(
    reals: Doubles,
    ints: Longs,
    level: int,
    token_ids: Ints,
    logits: Floats,
    begin: int,
    ranks: int,
    tables: Doubles,
    least: float,  # the probability of a path below which the walk turns back
) -> int:
    """Puts the next child of the node at `level` on the level below; says why not where there is none."""
    rank = ints[level, _NEXT_RANK]
    if rank == ints[level, _MATCH_RANK]:
        rank += 1
    probability = -1.0
    if rank < ranks and logits[begin + rank] > -np.inf:
        probability = acceptance(
            tables[ints[level, _OFF_SPINE]],
            level + 1,
            rank_bucket(rank),
            match_bucket(ints[level, _MATCH_LEN], False),
            logits[begin + rank],
        )
    of_match = reals[level, _MATCH_PROBABILITY]
    is_match = of_match >= 0.0 and of_match >= probability
    # Falling among siblings, so that the best nodes of all are a set of valid trees.
    probability = min(of_match if is_match else probability, reals[level, _LAST_CHILD], reals[level, _MASS_LEFT])
    if probability < NEGLIGIBLE:
        return _EXHAUSTED
    of_path = reals[level, _PROBABILITY] * probability
    if of_path < least:
        return _PRUNED
    if is_match:
        ints[level + 1, _TOKEN] = ints[level, _MATCH_TOKEN]
        reals[level, _MATCH_PROBABILITY] = -1.0
        is_spine = ints[level, _MATCH_RANK] == 0
    else:
        ints[level + 1, _TOKEN] = token_ids[begin + rank]
        ints[level, _NEXT_RANK] = rank + 1
        is_spine = rank == 0
    ints[level + 1, _OFF_SPINE] = ints[level, _OFF_SPINE] if is_spine else 1
    ints[level, _NUM_CHILDREN] += 1
    reals[level + 1, _PROBABILITY] = of_path
    reals[level, _LAST_CHILD] = probability
    reals[level, _MASS_LEFT] -= probability
    return _LIVE


@jit
def _keep_best(keys: Doubles, tokens: Ints, depths: Ints, begin: int, end: int, num_kept: int) -> int:
    """Drops all but the best of a sequence's nodes, their order kept; returns the new end."""
    cutoff = np.sort(keys[begin:end])[end - begin - num_kept] if num_kept > 0 else np.inf
    num_equal = num_kept - np.count_nonzero(keys[begin:end] > cutoff)
    kept = begin
    for i in range(begin, end):
        if keys[i] == cutoff:
            num_equal -= 1
        if keys[i] > cutoff or (keys[i] == cutoff and num_equal >= 0):
            keys[kept], tokens[kept], depths[kept] = keys[i], tokens[i], depths[i]
            kept += 1
    return kept


@jit
def find_nodes(
    candidates: Candidates,
    histories: Histories,
    parameters: Doubles,  # [NUM_CLASSES, 2, NUM_KINDS, NUM_BUCKETS]
    threshold: float,
    capacity: int,
) -> Found:
    """All nodes whose key reaches the threshold; at most `max_nodes` of a sequence, and its `min_nodes` best anyway.

    `ends` is empty where there are more than `capacity`.
    """
    num_sequences = len(candidates.roots)
    tokens, depths = np.empty(capacity, np.int32), np.empty(capacity, np.int32)
    keys, ends = np.empty(capacity, np.float64), np.zeros(num_sequences, np.int64)
    most_levels = 2
    for sequence in range(num_sequences):
        most_levels = max(most_levels, candidates.max_depths[sequence] + 1)
    reals, ints = np.zeros((most_levels, _NUM_REALS), np.float64), np.zeros((most_levels, _NUM_INTS), np.int64)
    reals[0, _PROBABILITY] = 1.0
    tail = np.empty(LONGEST_MATCH, np.int32)
    no_history = np.empty(0, np.int32)
    token_ids, logits = candidates.token_ids, candidates.logits
    end, is_complete = 0, True
    for sequence in range(num_sequences):
        weight, most = candidates.weights[sequence], candidates.max_nodes[sequence]
        most_depth = candidates.max_depths[sequence] if most > 0 else 0
        most_width, ranks = candidates.max_widths[sequence], candidates.num_ranks[sequence]
        tables = parameters[candidates.classes[sequence]]
        slot, history_len = candidates.slots[sequence], 0
        history, links, heads = no_history, no_history, no_history
        if slot >= 0:
            history_len = histories.lens[slot]
            history, links, heads = histories.tokens[slot], histories.links[slot], histories.heads[slot]
        begin, least, wanted = end, threshold / weight, min(candidates.min_nodes[sequence], most)
        while True:
            end, was_pruned, level, is_new = begin, False, 0, True
            while level >= 0:
                at = candidates.offsets[sequence] + level * ranks
                if level == most_depth:
                    level, is_new = level - 1, False
                    continue
                if is_new:
                    _enter(reals, ints, level, history, history_len, links, heads, tail)
                    if ints[level, _MATCH_LEN] > 0:
                        _rate_match(reals, ints, level, token_ids, logits, at, ranks, tables)
                status = _EXHAUSTED
                if ints[level, _NUM_CHILDREN] < most_width:
                    status = _next_child(reals, ints, level, token_ids, logits, at, ranks, tables, least)
                if status != _LIVE:
                    was_pruned |= status == _PRUNED
                    level, is_new = level - 1, False
                    continue
                if end == capacity:
                    return Found(tokens, depths, keys, ends[:0], False)
                level, is_new = level + 1, True
                tokens[end], depths[end] = ints[level, _TOKEN], level
                keys[end] = weight * reals[level, _PROBABILITY]
                end += 1
            if end - begin >= wanted or not was_pruned:
                break
            least /= 8.0  # too few for what it must have
        if end - begin > most:
            end = _keep_best(keys, tokens, depths, begin, end, most)
        elif was_pruned and end - begin < most:
            is_complete = False
        if wanted > 0 and end > begin:
            lowest = np.sort(keys[begin:end])[max(0, end - begin - wanted)]
            for i in range(begin, end):
                keys[i] += FLOOR if keys[i] >= lowest else 0.0
        ends[sequence] = end
    return Found(tokens[:end], depths[:end], keys[:end], ends, is_complete)


@jit
def take_nodes(
    roots: Ints, weights: Doubles, found: Found, cutoff: float, num_equal: int
) -> tuple[Ints, Ints, Longs, Doubles]:
    """The nodes above the cutoff and the first `num_equal` at it, as packed trees with their roots: token ids, depths,
    the row where each tree ends, and the tokens [sequences] expected of each, its bonus token included."""
    num_sequences = len(roots)
    tokens = np.empty(num_sequences + len(found.keys), np.int32)
    depths = np.empty(num_sequences + len(found.keys), np.int32)
    ends, expected = np.empty(num_sequences, np.int64), np.ones(num_sequences, np.float64)
    row, node = 0, 0
    for sequence in range(num_sequences):
        tokens[row], depths[row] = roots[sequence], 0
        row += 1
        for i in range(node, found.ends[sequence]):
            key = found.keys[i]
            if key < cutoff:
                continue
            if key == cutoff:
                if num_equal <= 0:
                    continue
                num_equal -= 1
            tokens[row], depths[row] = found.tokens[i], found.depths[i]
            expected[sequence] += (key if key < FLOOR else key - FLOOR) / weights[sequence]
            row += 1
        node = found.ends[sequence]
        ends[sequence] = row
    return tokens[:row], depths[:row], ends, expected
