"""Random draft trees in preorder, whose tokens the target either never chooses or always."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from dflash_core.contracts import DraftTree

Ints = npt.NDArray[np.int32]


def random_depths(rng: np.random.Generator, num_rows: int, max_depth: int | None = None) -> Ints:
    """`[num_rows]` of one tree: each node one deeper than the last, or back up to any depth above 0."""
    depths = np.zeros(num_rows, np.int32)
    for row in range(1, num_rows):
        deepest = depths[row - 1] + 1
        if max_depth is not None:
            deepest = min(deepest, max_depth)
        depths[row] = deepest if rng.random() < 0.6 else rng.integers(1, deepest + 1)
    return depths


def wrong_tree(
    rng: np.random.Generator, root: int, num_rows: int, max_depth: int, vocab_size: int, successor: Callable[[int], int]
) -> DraftTree:
    """A random tree without the token that the target chooses after a node: nothing of it is accepted."""
    depths = random_depths(rng, num_rows, max_depth)
    token_ids = np.empty(num_rows, np.int32)
    token_ids[0] = root
    path = [0] * (max_depth + 1)  # the last row at each depth
    children: dict[int, set[int]] = {}
    for row in range(1, num_rows):
        parent = path[depths[row] - 1]
        taken = children.setdefault(parent, {successor(int(token_ids[parent]))})
        token = int(rng.integers(vocab_size))
        while token in taken:
            token = int(rng.integers(vocab_size))
        taken.add(token)
        token_ids[row] = token
        path[depths[row]] = row
    return DraftTree(token_ids, depths)


def right_tree(root: int, num_rows: int, successor: Callable[[int], int]) -> DraftTree:
    """One path of the tokens that the target chooses: all of it is accepted."""
    token_ids = np.empty(num_rows, np.int32)
    token_ids[0] = root
    for row in range(1, num_rows):
        token_ids[row] = successor(int(token_ids[row - 1]))
    return DraftTree(token_ids, np.arange(num_rows, dtype=np.int32))
