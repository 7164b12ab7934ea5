"""The loop-free walk against following children one by one, on packs of random trees."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dflash_core.trees.structure import end_rows, parents
from dflash_core.trees.walk import accepted_rows
from tests.core.tree_oracle import random_depths, slow_parents, slow_walk


def random_pack(trees: list[np.ndarray], seed: int, hit_rate: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depths, tokens (distinct among siblings) and choices that follow some child with probability `hit_rate`."""
    rng = np.random.default_rng(seed)
    depths = np.concatenate(trees)
    parent_rows = parents(depths).tolist()
    token_ids = np.zeros(len(depths), dtype=np.int32)
    for parent in {-1, *parent_rows}:
        children = [row for row, p in enumerate(parent_rows) if p == parent]
        token_ids[children] = rng.permutation(50)[: len(children)] if parent >= 0 else rng.integers(50)
    choices = rng.integers(50, 60, size=len(depths)).astype(np.int64)
    for row in range(len(depths)):
        children = [r for r, p in enumerate(parent_rows) if p == row]
        if children and rng.random() < hit_rate:
            choices[row] = token_ids[rng.choice(children)]
    return depths, token_ids, choices


@given(
    trees=st.lists(random_depths(30), min_size=1, max_size=5),
    seed=st.integers(0, 2**32 - 1),
    hit_rate=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_walk_is_that_of_the_loop(trees: list[np.ndarray], seed: int, hit_rate: float) -> None:
    depths, token_ids, choices = random_pack(trees, seed, hit_rate)
    parent_rows, ends = parents(depths), end_rows(depths)
    expected: list[bool] = []
    for start, tree in zip(np.cumsum([0, *map(len, trees[:-1])]), trees, strict=True):
        here = slice(start, start + len(tree))
        expected += slow_walk(token_ids[here].tolist(), slow_parents(tree.tolist()), choices[here].tolist())

    assert accepted_rows(token_ids, parent_rows, ends, choices).tolist() == expected


def test_roots_alone_are_accepted() -> None:
    depths = np.zeros(3, dtype=np.int32)
    tokens = np.array([4, 5, 6])
    assert accepted_rows(tokens, parents(depths), end_rows(depths), np.array([1, 2, 3])).tolist() == [True] * 3
