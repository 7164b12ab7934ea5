"""The nodes of one sequence that are likely enough, found by a walk in preorder over all that it could have."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dflash_core.jit import jit, jit_borrowing
from dflash_core.trees.exponential import exponentials, sum_of, whole_row
from dflash_core.trees.matches import Histories, Shorts, bigram_bucket, is_marked, longest_match
from dflash_core.trees.packed import NEGLIGIBLE, Candidates, Found
from dflash_core.trees.scoring import (
    LONGEST_MATCH,
    NOT_A_CANDIDATE,
    RANK_BIAS,
    SLOPE,
    Doubles,
    Floats,
    Ints,
    Longs,
    depth_bucket,
    is_candidate,
    log_left,
    log_of,
    match_weight,
    none_weight,
    rank_bucket,
)

_ROUNDING = 1e-14  # of exponentials, relative
_UNKNOWN, _UNWEIGHED = -1, np.inf
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
    biases: Doubles  # [2, whole row of ranks], of a candidate's weight, on the spine and off it
    biases_of: Longs  # [1], the class they are of; −1: none yet
    logs: Doubles  # [levels, whole row of ranks], log q of the candidates of the depth below
    # Of the depth below a level, on the spine and off it; the same for many nodes.
    weights: Doubles  # [2 × levels, whole row of ranks], of its candidates
    shares: Doubles  # the same, over the total
    totals: Doubles  # [2 × levels], with the weight of none
    likeliest: Doubles  # [2 × levels], the first one's share, at most 1; −1: there is none; _UNWEIGHED: not known yet
    num_listed: Longs  # [levels], candidates of the depth below; _UNKNOWN: not counted yet
    left: Doubles  # [levels], log(1 − Σ q) of these candidates
    powers: Longs  # for `exponentials`


@jit
def new_scratch(num_levels: int, most_ranks: int) -> Scratch:
    width = whole_row(most_ranks)
    return Scratch(
        np.zeros(num_levels, _NODE),
        np.empty(LONGEST_MATCH, np.int32),
        np.zeros((2, width), np.float64),
        np.full(1, -1, np.int64),
        np.zeros((num_levels, width), np.float64),
        np.zeros((2 * num_levels, width), np.float64),
        np.zeros((2 * num_levels, width), np.float64),
        np.empty(2 * num_levels, np.float64),
        np.empty(2 * num_levels, np.float64),
        np.empty(num_levels, np.int64),
        np.empty(num_levels, np.float64),
        np.empty(width, np.int64),
    )


@jit_borrowing
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


@jit_borrowing
def _look_up_biases(scratch: Scratch, tables: Doubles, of_class: int) -> None:
    """Rank by rank, so that weighing takes several ranks at a time."""
    if scratch.biases_of[0] == of_class:
        return
    for is_off_spine in range(2):
        table, biases = tables[is_off_spine], scratch.biases[is_off_spine]
        for rank in range(len(biases)):
            biases[rank] = table[RANK_BIAS, rank_bucket(rank)]
    scratch.biases_of[0] = of_class


@jit_borrowing
def _count(scratch: Scratch, level: int, scores: Floats, first: int, num_ranks: int) -> None:
    """Notes what `scratch` holds of the candidates of the depth below; `first`: where their scores start."""
    num_listed, logs, said = 0, scratch.logs[level], scratch.shares[2 * level]
    while num_listed < num_ranks and is_candidate(scores[first + num_listed]):
        logs[num_listed] = said[num_listed] = log_of(scores[first + num_listed])
        num_listed += 1
    exponentials(said, num_listed, scratch.powers)
    scratch.num_listed[level], scratch.left[level] = num_listed, log_left(sum_of(said, num_listed))


@jit_borrowing
def _weigh(scratch: Scratch, level: int, is_off_spine: int, table: Doubles) -> None:
    """Notes the weights of the candidates of the depth below, which are counted, and their sum."""
    deep, num_listed, at = depth_bucket(level + 1), scratch.num_listed[level], 2 * level + is_off_spine
    logs, biases, slope = scratch.logs[level], scratch.biases[is_off_spine], table[SLOPE, deep]
    weights, shares = scratch.weights[at], scratch.shares[at]
    for rank in range(num_listed):
        weights[rank] = slope * logs[rank] + biases[rank]
    exponentials(weights, num_listed, scratch.powers)
    total = sum_of(weights, num_listed) + none_weight(table, deep, scratch.left[level])
    scratch.totals[at] = total
    for rank in range(num_listed):
        shares[rank] = weights[rank] / total
    scratch.likeliest[at] = min(shares[0], 1.0) if num_listed > 0 else -1.0


@jit_borrowing
def _weigh_match(
    match_token: int,
    match_len: int,
    total: float,  # of the weights without it
    table: Doubles,
    level: int,
    token_ids: Ints,  # all
    scores: Floats,  # all
    first: int,  # where those of this depth start
    num_listed: int,
    weights: Doubles,  # of this depth's candidates
) -> tuple[int, float, float]:
    """Its rank among the candidates, −1 where it is none of them, the total with it, and how likely it comes again."""
    rank = 0
    while rank < num_listed and token_ids[first + rank] != match_token:
        rank += 1
    is_listed = rank < num_listed
    last = rank if is_listed else num_listed - 1
    deep, of_rank = depth_bucket(level + 1), rank_bucket(rank) if is_listed else NOT_A_CANDIDATE
    weight = match_weight(table, deep, of_rank, match_len, log_of(scores[first + last] if last >= 0 else -np.inf))
    if last >= 0 and abs(weight - weights[last]) <= _ROUNDING * weight:
        weight = weights[last]  # it is its exponential by other means, as long as nothing was learned
    total += weight - (weights[rank] if is_listed else 0.0)
    return rank if is_listed else -1, total, weight / total


@jit_borrowing
def search_sequence(
    sequence: int,
    candidates: Candidates,
    histories: Histories,
    parameters: Doubles,  # [NUM_CLASSES, 2, NUM_KINDS, NUM_BUCKETS]
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
    negligible, tables = NEGLIGIBLE / weight, parameters[candidates.classes[sequence]]
    history_len = histories.lens[slot] if candidates.slots[sequence] >= 0 else 0
    history, marks = histories.tokens[slot], histories.marks[slot]
    links, heads = histories.links[slot], histories.heads[slot]
    _look_up_biases(scratch, tables, candidates.classes[sequence])
    scratch.likeliest[:] = _UNWEIGHED
    scratch.num_listed[:] = _UNKNOWN
    end, has_less_likely = begin, False
    # The node that the walk is at, whose record in `path` holds this while the walk is below it.
    level, of_path, is_off_spine, next_rank, num_children, last_child = 0, 1.0, 0, 0, 0, 1.0
    token = history[history_len - 1] if history_len > 0 else candidates.roots[sequence]
    match_token, match_len, match_rank, match_probability, total = -1, 0, -1, -1.0, 0.0
    _count(scratch, 0, scores, offset, num_ranks)
    _weigh(scratch, 0, 0, tables[0])
    may_match = history_len > 1 and is_marked(marks, bigram_bucket(history[history_len - 2], token, len(heads)))
    while True:
        if may_match:
            may_match = False
            path[level].token = token
            match_token, match_len = _find_match(path, level, tail, history, history_len, links, heads)
            if match_len > 0:
                table, first = tables[is_off_spine], offset + level * num_ranks
                at, listed = 2 * level + is_off_spine, scratch.num_listed[level]
                weights, total = scratch.weights[at], scratch.totals[at]
                match_rank, total, match_probability = _weigh_match(
                    match_token, match_len, total, table, level, token_ids, scores, first, listed, weights
                )
        rank, at, is_match = next_rank, 2 * level + is_off_spine, False
        if match_len == 0:
            probability = scratch.shares[at, rank] if rank < scratch.num_listed[level] else -1.0
        else:
            if rank == match_rank:
                rank += 1
            probability = scratch.weights[at, rank] / total if rank < scratch.num_listed[level] else -1.0
            is_match = match_probability >= 0.0 and match_probability >= probability
            if is_match:
                probability, rank = match_probability, match_rank
        # Falling among siblings, so that the best nodes of all are a set of valid trees.
        probability = min(probability, last_child)
        of_child = of_path * probability
        if num_children == most_width or of_child < least:
            has_less_likely |= num_children < most_width and of_child >= negligible
            if level == 0:
                break
            level -= 1
            node = path[level]
            token, of_path, is_off_spine = node.token, node.probability, node.is_off_spine
            next_rank, num_children, last_child = node.next_rank, node.num_children, node.last_child
            match_token, match_len, match_rank = node.match_token, node.match_len, node.match_rank
            match_probability, total = node.match_probability, node.total
            continue
        if end == len(keys):
            return -1, True
        child = match_token if is_match else token_ids[offset + level * num_ranks + rank]
        tokens[end], depths[end], keys[end] = child, level + 1, weight * of_child
        end += 1
        if is_match:
            match_probability = -1.0
        else:
            next_rank = rank + 1
        num_children += 1
        last_child = probability
        below = level + 1
        if below == most_depth:
            continue
        is_child_off = is_off_spine if rank == 0 else 1
        at = 2 * below + is_child_off
        if scratch.likeliest[at] == _UNWEIGHED:
            if scratch.num_listed[below] == _UNKNOWN:
                _count(scratch, below, scores, offset + below * num_ranks, num_ranks)
            _weigh(scratch, below, is_child_off, tables[is_child_off])
        may_match = history_len > 1 and is_marked(marks, bigram_bucket(token, child, len(heads)))
        # Most nodes have no children that are likely enough, and need not be entered.
        if not may_match:
            best = of_child * scratch.likeliest[at]
            if best < least:
                has_less_likely |= best >= negligible
                continue
        node = path[level]
        node.token, node.probability, node.is_off_spine = token, of_path, is_off_spine
        node.next_rank, node.num_children, node.last_child = next_rank, num_children, last_child
        node.match_token, node.match_len, node.match_rank = match_token, match_len, match_rank
        node.match_probability, node.total = match_probability, total
        level, token, of_path, is_off_spine = below, child, of_child, is_child_off
        next_rank, num_children, last_child = 0, 0, 1.0
        match_token, match_len, match_rank, match_probability = -1, 0, -1, -1.0
    return end, has_less_likely
