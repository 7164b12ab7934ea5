"""Building the best draft trees of a whole batch under one node budget.

Best-first search over the drafter's per-depth candidates, as in DDTree (arXiv 2604.12989), where a node's score is the
sum of the log-probabilities along its path; here one heap holds the nodes of all sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dflash_core.contracts import DraftTree, TokenIds
from dflash_core.jit import jit

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

UNLIMITED_WIDTH = 2**31 - 1

# The tie of two nodes, one integer: depth (11 bits), rank (12), sequence (16), the order in which their parents were
# taken (24).
_MAX_DEPTH, _MAX_RANKS, _MAX_SEQUENCES, _MAX_NODES = 1 << 11, 1 << 12, 1 << 16, 1 << 24
_RANK_SHIFT, _DEPTH_SHIFT, _SEQUENCE_SHIFT = 40, 52, 24


@dataclass(frozen=True, slots=True)
class TreeCandidates:
    """What one sequence brings to a round: its root, and the drafter's candidates per depth, best first.

    Scores are log-probabilities; where one is above 0 or above its predecessor's it counts as that, so that a node
    never scores above its parent or its previous sibling. A score of −inf (or NaN) ends its depth's list.
    """

    root_token: int
    token_ids: TokenIds  # [depth, K], distinct within a depth; [0, 0] where there is no draft
    scores: Floats  # [depth, K]
    max_depth: int  # of a node; the root's is 0
    max_nodes: int  # without the root
    max_width: int = UNLIMITED_WIDTH  # candidates considered per depth; 1 makes the tree a chain


def build_trees(candidates: Sequence[TreeCandidates], total_nodes: int) -> list[DraftTree]:
    """The `total_nodes` best nodes over all sequences, each tree in preorder with the likeliest child first.

    Among equal scores the shallower node goes first, then the lower rank, then the earlier sequence. Every tree holds
    the parent of each of its nodes. A sequence that has reached its `max_nodes` leaves its share to the others.

    Args:
        total_nodes: without the roots, which are always there.
    """
    num_sequences = len(candidates)
    if num_sequences == 0:
        return []
    num_ranks = [c.token_ids.shape[1] if c.token_ids.size else 0 for c in candidates]
    depths = [min(c.max_depth, len(c.token_ids)) for c in candidates]
    assert num_sequences < _MAX_SEQUENCES, num_sequences
    assert 0 <= total_nodes < _MAX_NODES - num_sequences, total_nodes
    assert max(num_ranks) < _MAX_RANKS, max(num_ranks)
    assert max(depths) < _MAX_DEPTH, max(depths)
    for c in candidates:
        assert c.token_ids.shape == c.scores.shape, (c.token_ids.shape, c.scores.shape)

    offsets = np.zeros(num_sequences, dtype=np.int64)
    np.cumsum([c.token_ids.size for c in candidates[:-1]], out=offsets[1:])
    token_ids, tree_depths, ends = _build(
        np.array([c.root_token for c in candidates], dtype=np.int32),
        np.concatenate([np.ravel(c.token_ids) for c in candidates]).astype(np.int32, copy=False),
        np.concatenate([np.ravel(c.scores) for c in candidates]).astype(np.float32, copy=False),
        offsets,
        np.array(num_ranks, dtype=np.int64),
        np.array([min(c.max_width, ranks) for c, ranks in zip(candidates, num_ranks, strict=True)], dtype=np.int64),
        np.array(depths, dtype=np.int64),
        np.array([c.max_nodes for c in candidates], dtype=np.int64),
        total_nodes,
    )
    starts = [0, *ends[:-1].tolist()]
    return [
        DraftTree(token_ids=token_ids[start:end], depths=tree_depths[start:end])
        for start, end in zip(starts, ends.tolist(), strict=True)
    ]


def warm_up() -> None:
    """Compiles (or loads from the cache) the search, so that the first round does not wait for it."""
    build_trees(
        [TreeCandidates(0, np.zeros((1, 1), np.int32), np.zeros((1, 1), np.float32), max_depth=1, max_nodes=1)], 1
    )


@jit
def _goes_before(score_a: float, tie_a: int, score_b: float, tie_b: int) -> bool:
    return score_a > score_b or (score_a == score_b and tie_a < tie_b)


@jit
def _push(heap_scores: Doubles, heap_ties: Longs, size: int, score: float, tie: int) -> None:
    """Adds a node to a binary heap of `size` nodes, the one to take first at index 0."""
    i = size
    while i > 0:
        above = (i - 1) // 2
        if not _goes_before(score, tie, heap_scores[above], heap_ties[above]):
            break
        heap_scores[i], heap_ties[i] = heap_scores[above], heap_ties[above]
        i = above
    heap_scores[i], heap_ties[i] = score, tie


@jit
def _pop(heap_scores: Doubles, heap_ties: Longs, size: int) -> None:
    """Removes index 0 from a heap of `size` nodes."""
    score, tie = heap_scores[size - 1], heap_ties[size - 1]
    i, below = 0, 1
    while below < size - 1:
        if below + 1 < size - 1 and _goes_before(
            heap_scores[below + 1], heap_ties[below + 1], heap_scores[below], heap_ties[below]
        ):
            below += 1
        if not _goes_before(heap_scores[below], heap_ties[below], score, tie):
            break
        heap_scores[i], heap_ties[i] = heap_scores[below], heap_ties[below]
        i, below = below, 2 * below + 1
    heap_scores[i], heap_ties[i] = score, tie


@jit
def _build(
    root_tokens: Ints,  # [sequences]
    token_ids: Ints,  # all candidates of all sequences, depth by depth
    raw_scores: Floats,
    offsets: Longs,  # [sequences], where a sequence's candidates start
    num_ranks: Longs,  # [sequences], K
    num_wanted_ranks: Longs,  # [sequences], ≤ K
    max_depths: Longs,
    max_nodes: Longs,
    total_nodes: int,
) -> tuple[Ints, Ints, Longs]:
    """Packed token ids and depths of all trees, and the row where each tree ends."""
    num_sequences = len(root_tokens)

    # Log-probabilities made non-increasing in rank and ≤ 0; −inf ends a list.
    scores = np.empty(len(raw_scores), np.float64)
    for sequence in range(num_sequences):
        for depth in range(max_depths[sequence]):
            bound = 0.0
            for rank in range(num_wanted_ranks[sequence]):
                i = offsets[sequence] + depth * num_ranks[sequence] + rank
                bound = min(bound, np.float64(raw_scores[i])) if raw_scores[i] == raw_scores[i] else -np.inf
                scores[i] = bound

    # Taken nodes in the order of taking: a parent before its children, siblings by rising rank. The first ones are the
    # roots; `tie` of a node on the heap names its parent by this order.
    node_sequence = np.empty(num_sequences + total_nodes, np.int64)
    node_parent = np.empty(num_sequences + total_nodes, np.int64)
    node_depth = np.empty(num_sequences + total_nodes, np.int32)
    node_token = np.empty(num_sequences + total_nodes, np.int32)
    node_score = np.empty(num_sequences + total_nodes, np.float64)
    num_taken = np.zeros(num_sequences, np.int64)
    heap_scores = np.empty(num_sequences + total_nodes + 1, np.float64)
    heap_ties = np.empty(num_sequences + total_nodes + 1, np.int64)
    heap_size = 0
    for sequence in range(num_sequences):
        node_sequence[sequence] = sequence
        node_parent[sequence] = -1
        node_depth[sequence] = 0
        node_token[sequence] = root_tokens[sequence]
        node_score[sequence] = 0.0
        if max_depths[sequence] > 0 and num_wanted_ranks[sequence] > 0 and scores[offsets[sequence]] > -np.inf:
            tie = (1 << _DEPTH_SHIFT) | (sequence << _SEQUENCE_SHIFT) | sequence
            _push(heap_scores, heap_ties, heap_size, scores[offsets[sequence]], tie)
            heap_size += 1

    num_nodes = num_sequences
    while heap_size > 0 and num_nodes < num_sequences + total_nodes:
        score, tie = heap_scores[0], heap_ties[0]
        _pop(heap_scores, heap_ties, heap_size)
        heap_size -= 1
        parent = tie & (_MAX_NODES - 1)
        sequence = (tie >> _SEQUENCE_SHIFT) & (_MAX_SEQUENCES - 1)
        rank = (tie >> _RANK_SHIFT) & (_MAX_RANKS - 1)
        depth = tie >> _DEPTH_SHIFT
        if num_taken[sequence] >= max_nodes[sequence]:
            continue
        num_taken[sequence] += 1
        own = offsets[sequence] + (depth - 1) * num_ranks[sequence] + rank
        node_sequence[num_nodes] = sequence
        node_parent[num_nodes] = parent
        node_depth[num_nodes] = depth
        node_token[num_nodes] = token_ids[own]
        node_score[num_nodes] = score
        if rank + 1 < num_wanted_ranks[sequence] and scores[own + 1] > -np.inf:
            sibling_tie = tie + (1 << _RANK_SHIFT)
            _push(heap_scores, heap_ties, heap_size, node_score[parent] + scores[own + 1], sibling_tie)
            heap_size += 1
        child = offsets[sequence] + depth * num_ranks[sequence]
        if depth < max_depths[sequence] and scores[child] > -np.inf:
            child_tie = ((depth + 1) << _DEPTH_SHIFT) | (sequence << _SEQUENCE_SHIFT) | num_nodes
            _push(heap_scores, heap_ties, heap_size, score + scores[child], child_tie)
            heap_size += 1
        num_nodes += 1

    # Preorder in one pass: subtree sizes from the back, then each node takes its parent's next free row.
    subtree_rows = np.ones(num_nodes, np.int64)
    for node in range(num_nodes - 1, num_sequences - 1, -1):
        subtree_rows[node_parent[node]] += subtree_rows[node]
    packed_tokens = np.empty(num_nodes, np.int32)
    packed_depths = np.empty(num_nodes, np.int32)
    next_row = np.empty(num_nodes, np.int64)
    ends = np.cumsum(subtree_rows[:num_sequences])
    for node in range(num_nodes):
        if node < num_sequences:
            row = ends[node] - subtree_rows[node]
        else:
            row = next_row[node_parent[node]]
            next_row[node_parent[node]] += subtree_rows[node]
        next_row[node] = row + 1
        packed_tokens[row] = node_token[node]
        packed_depths[row] = node_depth[node]
    return packed_tokens, packed_depths, ends
