"""The nodes of one sequence that are likely enough, found by a walk in preorder over all that it could have.

numba's cache of `search`, which inlines this, does not see a change here: touch that file too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dflash_core.jit import jit
from dflash_core.trees.matches import Histories, Shorts, bigram_bucket, is_marked, longest_match
from dflash_core.trees.packed import NEGLIGIBLE, Candidates, Found
from dflash_core.trees.scoring import (
    LONGEST_MATCH,
    NOT_A_CANDIDATE,
    SHORTEST_MATCH,
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
        ("mass_left", np.float64),  # children exclude each other: their probabilities sum to 1 at most
        ("match_token", np.int64),
        ("match_len", np.int64),  # 0: the sequence was never here before; _UNKNOWN: not looked for yet
        ("match_rank", np.int64),  # among the drafter's candidates; −1: it is none of them, or there is no match
        ("match_probability", np.float64),  # −1: there is none, or it is taken
    ],
    align=True,
)
# Lists of rated candidates per depth: on the spine and off it, without a match and by its length.
_MATCH_LENS = LONGEST_MATCH - SHORTEST_MATCH + 2
_LISTS = 2 * _MATCH_LENS


class Scratch(NamedTuple):
    """What is made once for all sequences."""

    path: npt.NDArray[Any]  # [levels] of _NODE, the root's first
    tail: Ints  # [LONGEST_MATCH], the last tokens of a path
    # What a candidate's probability depends on is the same for many nodes. −1 ends a list.
    rated: Doubles  # [levels × _LISTS, most ranks + 1]
    num_rated: Longs  # [levels × _LISTS], so far
    num_listed: Longs  # [levels], candidates of the depth below; _UNKNOWN: not counted yet


@jit
def new_scratch(num_levels: int, most_ranks: int) -> Scratch:
    return Scratch(
        np.zeros(num_levels, _NODE),
        np.empty(LONGEST_MATCH, np.int32),
        np.empty((num_levels * _LISTS, most_ranks + 1), np.float64),
        np.empty(num_levels * _LISTS, np.int64),
        np.empty(num_levels, np.int64),
    )


@jit
def _enter(node: Any, token: int, probability: float, is_off_spine: int) -> None:
    node.token, node.probability, node.is_off_spine = token, probability, is_off_spine
    node.next_rank, node.num_children, node.last_child, node.mass_left = 0, 0, 1.0, 1.0
    node.match_len, node.match_rank, node.match_probability = _UNKNOWN, -1, -1.0


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
    node: Any,
    level: int,
    num_listed: Longs,
    token_ids: Ints,  # all
    scores: Floats,  # all
    first: int,  # where those of this depth start
    num_ranks: int,
    tables: Doubles,
) -> None:
    """How likely does the sequence go on as it did before? The node's match is known."""
    if num_listed[level] == _UNKNOWN:
        num_listed[level] = 0
        while num_listed[level] < num_ranks and is_candidate(scores[first + num_listed[level]]):
            num_listed[level] += 1
    rank = 0
    while rank < num_listed[level] and token_ids[first + rank] != node.match_token:
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
        logit_of(scores[first + last] if last >= 0 else -np.inf),
    )


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
    path, tail, rated = scratch.path, scratch.tail, scratch.rated
    num_rated, num_listed = scratch.num_rated, scratch.num_listed
    tokens, depths, keys = found.tokens, found.depths, found.keys
    token_ids, scores = candidates.token_ids, candidates.scores
    offset, num_ranks = candidates.offsets[sequence], candidates.num_ranks[sequence]
    most_depth, most_width = candidates.max_depths[sequence], candidates.max_widths[sequence]
    weight, slot = candidates.weights[sequence], max(0, candidates.slots[sequence])
    negligible = NEGLIGIBLE / weight
    history_len = histories.lens[slot] if candidates.slots[sequence] >= 0 else 0
    history, marks = histories.tokens[slot], histories.marks[slot]
    links, heads = histories.links[slot], histories.heads[slot]
    num_rated[:] = 0
    num_listed[:] = _UNKNOWN
    root = history[history_len - 1] if history_len > 0 else candidates.roots[sequence]
    _enter(path[0], root, 1.0, 0)
    level, end, has_less_likely = 0, begin, False
    while level >= 0:
        node = path[level]
        if level == most_depth or node.num_children == most_width:
            level -= 1
            continue
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
                        _rate_match(node, level, num_listed, token_ids, scores, first, num_ranks, tables)
        rank = node.next_rank
        if rank == node.match_rank:
            rank += 1
        of_len = 0 if node.match_len == 0 else node.match_len - SHORTEST_MATCH + 1
        at = level * _LISTS + node.is_off_spine * _MATCH_LENS + of_len
        while num_rated[at] <= rank:
            other, probability = num_rated[at], -1.0
            if other < num_ranks and is_candidate(scores[first + other]):
                match, logit = match_bucket(node.match_len, False), logit_of(scores[first + other])
                probability = acceptance(tables, node.is_off_spine, level + 1, rank_bucket(other), match, logit)
            rated[at, other] = probability
            num_rated[at] += 1
        probability = rated[at, rank]
        is_match = node.match_probability >= 0.0 and node.match_probability >= probability
        if is_match:
            probability, rank = node.match_probability, node.match_rank
        # Falling among siblings, so that the best nodes of all are a set of valid trees.
        probability = min(probability, node.last_child, node.mass_left)
        of_path = node.probability * probability
        if of_path < least:
            has_less_likely |= of_path >= negligible
            level -= 1
            continue
        if end == len(keys):
            return -1, True
        token = node.match_token if is_match else token_ids[first + rank]
        tokens[end], depths[end], keys[end] = token, level + 1, weight * of_path
        end += 1
        if is_match:
            node.match_probability = -1.0
        else:
            node.next_rank = rank + 1
        node.num_children += 1
        node.last_child = probability
        node.mass_left -= probability
        level += 1
        _enter(path[level], token, of_path, node.is_off_spine if rank == 0 else 1)
    return end, has_less_likely
