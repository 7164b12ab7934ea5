"""The nodes of one sequence that are likely enough, found by a walk in preorder over all that it could have."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dflash_core.jit import jit
from dflash_core.trees.matches import Histories, Shorts, bigram_bucket, is_marked, longest_match
from dflash_core.trees.packed import NEGLIGIBLE, Candidates, Found
from dflash_core.trees.scoring import (
    LONGEST_MATCH,
    NOT_A_CANDIDATE,
    Doubles,
    Floats,
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

_UNKNOWN = -1
# A node of the path that the walk is on, and which of its children come next.
_NODE = np.dtype(
    [
        ("token", np.int64),
        ("probability", np.float64),  # of all its path
        ("is_off_spine", np.int64),
        ("next_rank", np.int64),
        ("num_children", np.int64),
        ("last_child", np.float64),  # probability of the child before, given this node
        ("total", np.float64),  # the sum of its children's weights and of none's, where there is a match
        ("match_token", np.int64),
        ("match_len", np.int64),  # 0: the sequence was never here before
        ("match_rank", np.int64),  # among the drafter's candidates; −1: it is none of them, or there is no match
        ("match_probability", np.float64),  # −1: there is none, or it is taken
    ],
    align=True,
)


class Scratch(NamedTuple):
    """What is made once for all sequences."""

    path: npt.NDArray[Any]  # [levels] of _NODE, the root's first
    tail: Ints  # [LONGEST_MATCH], the last tokens of a path
    # Of the depth below a level, on the spine and off it; the same for many nodes.
    weights: Doubles  # [2 × levels, most ranks], of its candidates
    shares: Doubles  # the same, over the total
    totals: Doubles  # [2 × levels], with the weight of none; _UNKNOWN: not weighed yet
    num_listed: Longs  # [levels], candidates of the depth below; _UNKNOWN: not counted yet
    left: Doubles  # [levels], log(1 − Σ q) of these candidates


@jit
def new_scratch(num_levels: int, most_ranks: int) -> Scratch:
    return Scratch(
        np.zeros(num_levels, _NODE),
        np.empty(LONGEST_MATCH, np.int32),
        np.empty((2 * num_levels, most_ranks), np.float64),
        np.empty((2 * num_levels, most_ranks), np.float64),
        np.empty(2 * num_levels, np.float64),
        np.empty(num_levels, np.int64),
        np.empty(num_levels, np.float64),
    )


@jit
def _enter(node: Any, token: int, probability: float, is_off_spine: int) -> None:
    node.token, node.probability, node.is_off_spine = token, probability, is_off_spine
    node.next_rank, node.num_children, node.last_child = 0, 0, 1.0
    node.match_len, node.match_rank, node.match_probability = 0, -1, -1.0


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
def _count(scratch: Scratch, level: int, scores: Floats, first: int, num_ranks: int) -> None:
    """Notes what `scratch` holds of the candidates of the depth below; `first`: where their scores start."""
    num_listed, total = 0, 0.0
    while num_listed < num_ranks and is_candidate(scores[first + num_listed]):
        total += math.exp(log_of(scores[first + num_listed]))
        num_listed += 1
    scratch.num_listed[level], scratch.left[level] = num_listed, log_left(total)


@jit
def _weigh(scratch: Scratch, level: int, at: int, table: Doubles, scores: Floats, first: int) -> None:
    """Notes the weights of the candidates of the depth below, which are counted, and their sum; `at`: their place."""
    deep, total, weights = depth_bucket(level + 1), 0.0, scratch.weights[at]
    for rank in range(scratch.num_listed[level]):
        weights[rank] = candidate_weight(table, deep, rank_bucket(rank), log_of(scores[first + rank]))
        total += weights[rank]
    total += none_weight(table, deep, scratch.left[level])
    scratch.totals[at] = total
    for rank in range(scratch.num_listed[level]):
        scratch.shares[at, rank] = weights[rank] / total


@jit
def _weigh_match(
    node: Any,
    table: Doubles,
    level: int,
    token_ids: Ints,  # all
    scores: Floats,  # all
    first: int,  # where those of this depth start
    num_listed: int,
    weights: Doubles,  # of this depth's candidates
) -> None:
    """How likely does the sequence go on as it did before? The node's match and its total without it are known."""
    rank = 0
    while rank < num_listed and token_ids[first + rank] != node.match_token:
        rank += 1
    is_listed = rank < num_listed
    last = rank if is_listed else num_listed - 1
    weight = match_weight(
        table,
        depth_bucket(level + 1),
        rank_bucket(rank) if is_listed else NOT_A_CANDIDATE,
        node.match_len,
        log_of(scores[first + last] if last >= 0 else -np.inf),
    )
    node.match_rank = rank if is_listed else -1
    node.total += weight - (weights[rank] if is_listed else 0.0)
    node.match_probability = weight / node.total


@jit
def search_sequence(
    sequence: int,
    candidates: Candidates,
    histories: Histories,
    tables: Doubles,  # [2, NUM_KINDS, NUM_BUCKETS]
    scratch: Scratch,
    found: Found,
    begin: int,
    least: float,  # the probability below which the walk turns back
) -> tuple[int, bool]:
    """Writes the nodes from `begin` on; their end, −1 if there is no room, and whether there are less likely ones."""
    path, tail = scratch.path, scratch.tail
    tokens, depths, keys = found.tokens, found.depths, found.keys
    token_ids, scores = candidates.token_ids, candidates.scores
    offset, num_ranks = candidates.offsets[sequence], candidates.num_ranks[sequence]
    most_depth, most_width = candidates.max_depths[sequence], candidates.max_widths[sequence]
    weight, slot = candidates.weights[sequence], max(0, candidates.slots[sequence])
    if min(most_depth, most_width) == 0:
        return begin, False
    negligible = NEGLIGIBLE / weight
    history_len = histories.lens[slot] if candidates.slots[sequence] >= 0 else 0
    history, marks = histories.tokens[slot], histories.marks[slot]
    links, heads = histories.links[slot], histories.heads[slot]
    scratch.totals[:] = _UNKNOWN
    scratch.num_listed[:] = _UNKNOWN
    token = history[history_len - 1] if history_len > 0 else candidates.roots[sequence]
    level, end, has_less_likely, of_path, is_off_spine = 0, begin, False, 1.0, 0
    is_new = True  # the node at this level: its children were not looked at yet
    while level >= 0:
        if is_new:
            is_new = False
            if level == most_depth:
                level -= 1
                continue
            first, at = offset + level * num_ranks, 2 * level + is_off_spine
            if scratch.num_listed[level] == _UNKNOWN:
                _count(scratch, level, scores, first, num_ranks)
            if scratch.totals[at] == _UNKNOWN:
                _weigh(scratch, level, at, tables[is_off_spine], scores, first)
            may_match = False
            if history_len > 1:
                before = path[level - 1].token if level > 0 else history[history_len - 2]
                may_match = is_marked(marks, bigram_bucket(before, token, len(heads)))
            if not may_match:
                # Most nodes have no children that are likely enough, and need not be entered.
                best = of_path * min(scratch.shares[at, 0], 1.0) if scratch.num_listed[level] > 0 else -1.0
                if best < least:
                    has_less_likely |= best >= negligible
                    level -= 1
                    continue
            node = path[level]
            _enter(node, token, of_path, is_off_spine)
            if may_match:
                node.match_token, node.match_len = _find_match(path, level, tail, history, history_len, links, heads)
                if node.match_len > 0:
                    node.total = scratch.totals[at]
                    num_listed, weights = scratch.num_listed[level], scratch.weights[at]
                    _weigh_match(node, tables[is_off_spine], level, token_ids, scores, first, num_listed, weights)
        node = path[level]
        if node.num_children == most_width:
            level -= 1
            continue
        rank, at, is_match = node.next_rank, 2 * level + node.is_off_spine, False
        if node.match_len == 0:
            probability = scratch.shares[at, rank] if rank < scratch.num_listed[level] else -1.0
        else:
            if rank == node.match_rank:
                rank += 1
            probability = scratch.weights[at, rank] / node.total if rank < scratch.num_listed[level] else -1.0
            is_match = node.match_probability >= 0.0 and node.match_probability >= probability
            if is_match:
                probability, rank = node.match_probability, node.match_rank
        # Falling among siblings, so that the best nodes of all are a set of valid trees.
        probability = min(probability, node.last_child)
        of_path = node.probability * probability
        if of_path < least:
            has_less_likely |= of_path >= negligible
            level -= 1
            continue
        if end == len(keys):
            return -1, True
        token = node.match_token if is_match else token_ids[offset + level * num_ranks + rank]
        tokens[end], depths[end], keys[end] = token, level + 1, weight * of_path
        end += 1
        if is_match:
            node.match_probability = -1.0
        else:
            node.next_rank = rank + 1
        node.num_children += 1
        node.last_child = probability
        level, is_off_spine, is_new = level + 1, node.is_off_spine if rank == 0 else 1, True
    return end, has_less_likely
