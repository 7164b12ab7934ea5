"""The likeliest nodes of a whole batch.

DDTree (arXiv 2604.12989) takes nodes from a heap, best first. Over many sequences a heap spends most of its time
sifting; but a node's probability never exceeds its parent's or its likelier sibling's, so a walk in preorder that turns
back below a threshold finds exactly the nodes above it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dflash_core.jit import jit
from dflash_core.trees.matches import Histories, Shorts, bigram_bucket, is_marked, longest_match
from dflash_core.trees.scoring import (
    LONGEST_MATCH,
    NO_MATCH,
    NOT_A_CANDIDATE,
    Doubles,
    Floats,
    Ints,
    Longs,
    acceptance,
    is_candidate,
    logit_of,
    match_bucket,
    rank_bucket,
)

MAX_WEIGHT = 8.0
FLOOR = 2 * MAX_WEIGHT  # added to the keys of nodes that a sequence gets in any case
NEGLIGIBLE = 1e-9  # a node whose key is less than this is none

# A sequence that lacks nodes it must have is walked again with a threshold lower by this factor.
_LOWER = 1.0 / 8.0
# Whatever the rounding, a node is found whose key equals the threshold.
_MARGIN = 1.0 - 1e-12


class Candidates(NamedTuple):
    """What a batch brings to the search: one entry per sequence, unless said otherwise."""

    roots: Ints  # their tokens
    token_ids: Ints  # all candidates of all sequences, depth by depth
    scores: Floats  # their log-probabilities; −inf or NaN ends a depth's list
    offsets: Longs  # where a sequence's candidates start
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


_UNKNOWN = -1
# A node of the path that the walk is on, and which of its children come next.
_NODE = np.dtype(
    [
        ("probability", np.float64),  # of all its path
        ("next_rank", np.int64),
        ("num_children", np.int64),
        ("last_child", np.float64),  # probability of the child before, given this node
        ("mass_left", np.float64),  # children exclude each other: their probabilities sum to 1 at most
        ("match_token", np.int64),
        ("match_len", np.int64),  # 0: the sequence was never here before; _UNKNOWN: not looked for yet
        ("match_rank", np.int64),  # among the drafter's candidates; −1: it is none of them, or there is no match
        ("match_probability", np.float64),  # −1: it is taken
        ("token", np.int64),
        ("is_off_spine", np.int64),
    ],
    align=True,
)


class _Scratch(NamedTuple):
    """What is made once for all sequences."""

    path: npt.NDArray[Any]  # [levels] of _NODE, the root's first
    tail: Ints  # [LONGEST_MATCH], the last tokens of a path
    # Most nodes have no match, and then their children's probabilities depend on depth and spine alone:
    children: Doubles  # [levels × 2, most ranks + 1], those that were asked for; −1 ends the list
    num_known: Longs  # [levels × 2]
    mass_left: Doubles  # [levels × 2]
    num_listed: Longs  # [levels]: candidates of the depth below; −1: not counted yet


@jit
def _find_match(
    path: npt.NDArray[Any],
    level: int,
    tail: Ints,
    history: Ints,  # [window]
    history_len: int,
    links: Shorts,
    heads: Shorts,
) -> tuple[int, int]:
    """How did the sequence go on after the tokens that end at this level's node?"""
    for back in range(LONGEST_MATCH):
        above = level - back
        position = history_len - 1 + above
        if above > 0:
            tail[back] = path[above].token
        else:
            tail[back] = history[position] if position >= 0 else -1
    return longest_match(tail, history, history_len, links, heads)


@jit
def _rate_match(
    path: npt.NDArray[Any],
    num_listed: Longs,
    level: int,
    token_ids: Ints,  # all
    scores: Floats,  # all
    begin: int,  # where those of this depth start
    num_ranks: int,
    tables: Doubles,
) -> None:
    """How likely does the sequence go on as it did before? The node's match is known."""
    node = path[level]
    if num_listed[level] < 0:
        num_listed[level] = 0
        while num_listed[level] < num_ranks and is_candidate(scores[begin + num_listed[level]]):
            num_listed[level] += 1
    rank = 0
    while rank < num_listed[level] and token_ids[begin + rank] != node.match_token:
        rank += 1
    is_listed = rank < num_listed[level]
    # What the drafter does not list is less likely to it than all that it does.
    last = rank if is_listed else num_listed[level] - 1
    node.match_rank = rank if is_listed else -1
    node.match_probability = acceptance(
        tables,
        node.is_off_spine,
        level + 1,
        rank_bucket(rank) if is_listed else NOT_A_CANDIDATE,
        match_bucket(node.match_len, True),
        logit_of(scores[begin + last] if last >= 0 else -np.inf),
    )
    node.next_rank, node.last_child, node.mass_left = 0, 1.0, 1.0


@jit
def _next_beside_match(
    path: npt.NDArray[Any],
    level: int,
    scores: Floats,
    begin: int,
    num_ranks: int,
    tables: Doubles,
) -> tuple[float, int]:
    """The next child of a node with a match: its probability, −1 for none, and its rank, −1 if it is no candidate."""
    node = path[level]
    rank = node.next_rank
    if rank == node.match_rank:
        rank += 1
    probability = -1.0
    if rank < num_ranks and is_candidate(scores[begin + rank]):
        probability = acceptance(
            tables,
            node.is_off_spine,
            level + 1,
            rank_bucket(rank),
            match_bucket(node.match_len, False),
            logit_of(scores[begin + rank]),
        )
    if node.match_probability >= 0.0 and node.match_probability >= probability:
        probability, rank = node.match_probability, node.match_rank
        node.match_probability = -1.0
    else:
        node.next_rank = rank + 1
    probability = min(probability, node.last_child, node.mass_left)
    node.last_child = probability
    node.mass_left -= probability
    return probability, rank


@jit
def _walk(
    sequence: int,
    candidates: Candidates,
    histories: Histories,
    tables: Doubles,  # [2, NUM_KINDS, NUM_BUCKETS]
    scratch: _Scratch,
    found: Found,
    begin: int,
    least: float,  # the probability below which the walk turns back
) -> tuple[int, bool]:
    """Writes a sequence's nodes from `begin` on; their end, −1 if there is no room, and whether any is less likely."""
    path, tail, children = scratch.path, scratch.tail, scratch.children
    num_known, mass_left, num_listed = scratch.num_known, scratch.mass_left, scratch.num_listed
    tokens, depths, keys = found.tokens, found.depths, found.keys
    token_ids, scores = candidates.token_ids, candidates.scores
    offset, num_ranks = candidates.offsets[sequence], candidates.num_ranks[sequence]
    most_depth, most_width = candidates.max_depths[sequence], candidates.max_widths[sequence]
    weight, slot = candidates.weights[sequence], max(0, candidates.slots[sequence])
    negligible = NEGLIGIBLE / weight
    history_len = histories.lens[slot] if candidates.slots[sequence] >= 0 else 0
    history, marks = histories.tokens[slot], histories.marks[slot]
    links, heads = histories.links[slot], histories.heads[slot]
    level, end, was_pruned = 0, begin, False
    path[0].token = history[history_len - 1] if history_len > 0 else candidates.roots[sequence]
    path[0].next_rank, path[0].num_children, path[0].match_len = 0, 0, _UNKNOWN
    while level >= 0:
        if level == most_depth:
            level -= 1
            continue
        node = path[level]
        first = offset + level * num_ranks
        if node.match_len == _UNKNOWN:
            node.match_len = 0
            if history_len > 1:
                before = path[level - 1].token if level > 0 else history[history_len - 2]
                if is_marked(marks, bigram_bucket(before, node.token, len(heads))):
                    node.match_token, node.match_len = _find_match(
                        path, level, tail, history, history_len, links, heads
                    )
                if node.match_len > 0:
                    _rate_match(path, num_listed, level, token_ids, scores, first, num_ranks, tables)
        rank, probability = node.next_rank, -1.0
        if node.num_children == most_width:
            pass
        elif node.match_len > 0:
            probability, rank = _next_beside_match(path, level, scores, first, num_ranks, tables)
        else:
            group = 2 * level + node.is_off_spine
            if rank == num_known[group]:
                num_known[group] += 1
                if rank < num_ranks and is_candidate(scores[first + rank]):
                    # Falling among siblings, so that the best nodes of all are a set of valid trees.
                    probability = min(
                        acceptance(
                            tables,
                            node.is_off_spine,
                            level + 1,
                            rank_bucket(rank),
                            NO_MATCH,
                            logit_of(scores[first + rank]),
                        ),
                        children[group, rank - 1] if rank > 0 else 1.0,
                        mass_left[group],
                    )
                    mass_left[group] -= probability
                children[group, rank] = probability
            probability = children[group, rank]
            node.next_rank = rank + 1
        of_path = node.probability * probability
        if of_path < least:
            was_pruned |= of_path >= negligible
            level -= 1
            continue
        if end == len(keys):
            return -1, was_pruned
        node.num_children += 1
        token = token_ids[first + rank] if rank >= 0 else node.match_token
        tokens[end], depths[end], keys[end] = token, level + 1, weight * of_path
        end += 1
        child = path[level + 1]
        child.token, child.probability = token, of_path
        child.is_off_spine = node.is_off_spine if rank == 0 else 1
        child.next_rank, child.num_children, child.match_len = 0, 0, _UNKNOWN
        level += 1
    return end, was_pruned


@jit
def _nth_largest(values: Doubles, n: int) -> float:
    """`n` from 1 on."""
    value: float = np.partition(values, len(values) - n)[len(values) - n]
    return value


@jit
def _keep_best(found: Found, begin: int, end: int, num_kept: int) -> int:
    """Drops all but the best of a sequence's nodes, their order kept; returns the new end."""
    tokens, depths, keys = found.tokens, found.depths, found.keys
    cutoff = _nth_largest(keys[begin:end], num_kept)
    num_equal = num_kept - np.count_nonzero(keys[begin:end] > cutoff)
    kept = begin
    for i in range(begin, end):
        if keys[i] < cutoff:
            continue
        if keys[i] == cutoff:
            if num_equal == 0:
                continue
            num_equal -= 1
        keys[kept], tokens[kept], depths[kept] = keys[i], tokens[i], depths[i]
        kept += 1
    return kept


@jit
def _mark_floor(found: Found, begin: int, end: int, num_wanted: int, threshold: float) -> int:
    """Marks the nodes that a sequence gets in any case; drops others below the threshold. Returns the new end."""
    tokens, depths, keys = found.tokens, found.depths, found.keys
    cutoff = _nth_largest(keys[begin:end], num_wanted)
    num_equal = num_wanted - np.count_nonzero(keys[begin:end] > cutoff)
    kept = begin
    for i in range(begin, end):
        key = keys[i]
        is_wanted = key > cutoff
        if key == cutoff and num_equal > 0:
            num_equal -= 1
            is_wanted = True
        if not is_wanted and key < threshold:
            continue
        keys[kept], tokens[kept], depths[kept] = key + FLOOR if is_wanted else key, tokens[i], depths[i]
        kept += 1
    return kept


@jit
def find_nodes(
    candidates: Candidates,
    histories: Histories,  # of one slot at least
    parameters: Doubles,  # [NUM_CLASSES, 2, NUM_KINDS, NUM_BUCKETS]
    threshold: float,  # ≥ NEGLIGIBLE
    capacity: int,
) -> Found:
    """All nodes whose key reaches the threshold; at most `max_nodes` of a sequence, and its `min_nodes` best anyway.

    `ends` is empty where there are more than `capacity`.
    """
    num_sequences = len(candidates.roots)
    most_levels, most_ranks = 1, 0
    for sequence in range(num_sequences):
        most_levels = max(most_levels, candidates.max_depths[sequence] + 1)
        most_ranks = max(most_ranks, candidates.num_ranks[sequence])
    scratch = _Scratch(
        np.zeros(most_levels, _NODE),
        np.empty(LONGEST_MATCH, np.int32),
        np.empty((2 * most_levels, most_ranks + 1), np.float64),
        np.empty(2 * most_levels, np.int64),
        np.empty(2 * most_levels, np.float64),
        np.empty(most_levels, np.int64),
    )
    scratch.path[0].probability = 1.0
    found = Found(
        np.empty(capacity, np.int32),
        np.empty(capacity, np.int32),
        np.empty(capacity, np.float64),
        np.empty(num_sequences, np.int64),
        True,
    )
    end, is_complete = 0, True
    for sequence in range(num_sequences):
        most = candidates.max_nodes[sequence]
        wanted = min(candidates.min_nodes[sequence], most)
        scratch.num_known[:] = 0
        scratch.mass_left[:] = 1.0
        scratch.num_listed[:] = -1
        begin, was_pruned = end, False
        negligible = NEGLIGIBLE / candidates.weights[sequence]
        least = max(threshold / candidates.weights[sequence] * _MARGIN, negligible)
        while most > 0:
            end, was_pruned = _walk(
                sequence, candidates, histories, parameters[candidates.classes[sequence]], scratch, found, begin, least
            )
            if end < 0:
                return Found(found.tokens, found.depths, found.keys, found.ends[:0], False)
            if end - begin >= wanted or not was_pruned:
                break
            least = max(least * _LOWER, negligible)
        is_complete &= not was_pruned or end - begin >= most
        if end - begin > most:
            end = _keep_best(found, begin, end, most)
        if wanted > 0 and end > begin:
            num_found = end - begin
            end = _mark_floor(found, begin, end, min(wanted, num_found), threshold)
            is_complete &= end - begin == num_found
        found.ends[sequence] = end
    return Found(found.tokens[:end], found.depths[:end], found.keys[:end], found.ends, is_complete)
