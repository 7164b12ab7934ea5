"""Random trees, and what the fast paths of `dflash_core.trees` compute, node by node."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from dflash_core.contracts import DraftTree
from dflash_core.trees.build import TreeCandidates


@st.composite
def random_depths(draw: st.DrawFn, max_rows: int = 40) -> np.ndarray:
    """Preorder depths of one random tree."""
    depths = [0]
    for _ in range(draw(st.integers(0, max_rows - 1))):
        depths.append(draw(st.integers(1, depths[-1] + 1)))
    return np.array(depths, dtype=np.int32)


def slow_parents(depths: Sequence[int]) -> list[int]:
    """The last earlier row with one depth less."""
    return [
        -1 if depth == 0 else max(k for k in range(row) if depths[k] == depth - 1) for row, depth in enumerate(depths)
    ]


def ancestors(parents: Sequence[int], row: int) -> set[int]:
    """`row` itself and all rows above it."""
    found = {row}
    while parents[row] >= 0:
        row = parents[row]
        found.add(row)
    return found


def slow_walk(token_ids: Sequence[int], parents: Sequence[int], choices: Sequence[int]) -> list[bool]:
    """From each root, follow the child whose token was chosen."""
    accepted = [False] * len(token_ids)
    for root in (row for row, parent in enumerate(parents) if parent < 0):
        here: int | None = root
        while here is not None:
            accepted[here] = True
            matching = [r for r, p in enumerate(parents) if p == here and token_ids[r] == choices[here]]
            here = matching[0] if matching else None
    return accepted


def exhaustive_trees(candidates: Sequence[TreeCandidates], total_nodes: int) -> list[set[tuple[int, ...]]]:
    """Every possible node of every sequence, sorted; the best ones as paths of ranks, per sequence."""
    nodes: list[tuple[tuple[object, ...], int, tuple[int, ...]]] = []
    for sequence, c in enumerate(candidates):
        scores = np.minimum.accumulate(np.minimum(c.scores.astype(np.float64), 0.0), axis=1) if c.scores.size else []
        width = min(c.max_width, c.token_ids.shape[1])
        level: list[tuple[tuple[int, ...], float, tuple[object, ...]]] = [((), 0.0, ())]
        for depth in range(1, min(c.max_depth, len(c.token_ids)) + 1):
            level = [
                # Among equal nodes of one depth, rank and sequence the one whose parent goes first.
                ((*path, rank), total, (-total, depth, rank, sequence, parent_key))
                for path, above, parent_key in level
                for rank in range(width)
                if (total := above + scores[depth - 1][rank]) > -np.inf
            ]
            nodes.extend((key, sequence, path) for path, _, key in level)
    nodes.sort(key=lambda node: node[0])
    kept: list[set[tuple[int, ...]]] = [set() for _ in candidates]
    left = total_nodes
    for _, sequence, path in nodes:
        if left > 0 and len(kept[sequence]) < candidates[sequence].max_nodes:
            kept[sequence].add(path)
            left -= 1
    return kept


def rank_paths(tree: DraftTree, candidates: TreeCandidates) -> list[tuple[int, ...]]:
    """Each row's path from the root as ranks, in the order of rows; token ids are distinct within a depth."""
    paths: list[tuple[int, ...]] = []
    parents = slow_parents(tree.depths.tolist())
    for row, (token, depth) in enumerate(zip(tree.token_ids.tolist(), tree.depths.tolist(), strict=True)):
        if row == 0:
            paths.append(())
            continue
        rank = candidates.token_ids[depth - 1].tolist().index(token)
        paths.append((*paths[parents[row]], rank))
    return paths
