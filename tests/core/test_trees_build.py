"""Building trees against exhaustive search over every possible node."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dflash_core.trees.build import TreeCandidates, build_trees, warm_up
from dflash_core.trees.structure import check_tree
from tests.core.tree_oracle import exhaustive_trees, rank_paths


def log_probabilities(rng: np.random.Generator, depth: int, num_ranks: int) -> np.ndarray:
    logits = -np.sort(-rng.normal(size=(depth, 50)) * 2, axis=1)
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))[:, :num_ranks].astype(np.float32)


def distinct_ids(rng: np.random.Generator, depth: int, num_ranks: int) -> np.ndarray:
    return np.array([rng.permutation(100)[:num_ranks] for _ in range(depth)], dtype=np.int32).reshape(depth, num_ranks)


@st.composite
def small_candidates(draw: st.DrawFn) -> TreeCandidates:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    depth, num_ranks = draw(st.integers(0, 4)), draw(st.integers(1, 4))
    kind = draw(st.sampled_from(["smooth", "smooth", "ties", "raw", "cut"]))
    scores = log_probabilities(rng, depth, num_ranks)
    if kind == "ties":  # exact in binary: sums along different paths meet
        scores = np.round(scores)
    if kind == "raw":  # as badly calibrated scores may be: above 0 and rising in rank
        scores = rng.normal(size=(depth, num_ranks)).astype(np.float32)
    if kind == "cut":
        scores[:, num_ranks // 2 :] = -np.inf
    return TreeCandidates(
        root_token=int(rng.integers(100)),
        token_ids=distinct_ids(rng, depth, num_ranks),
        scores=scores,
        max_depth=draw(st.integers(0, 5)),
        max_nodes=draw(st.sampled_from([0, 1, 3, 10, 1000])),
        max_width=draw(st.sampled_from([1, 2, 1000])),
    )


@given(st.lists(small_candidates(), min_size=1, max_size=4), st.integers(0, 60))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_trees_hold_the_best_nodes_of_the_whole_batch(candidates: list[TreeCandidates], total_nodes: int) -> None:
    trees = build_trees(candidates, total_nodes)
    expected = exhaustive_trees(candidates, total_nodes)
    assert len(trees) == len(candidates)
    for tree, c, best_paths in zip(trees, candidates, expected, strict=True):
        check_tree(tree, vocab_size=100, max_rows=1001, max_depth=max(c.max_depth, 0))
        assert tree.token_ids.dtype == tree.depths.dtype == np.int32
        assert tree.token_ids[0] == c.root_token
        paths = rank_paths(tree, c)
        assert set(paths[1:]) == best_paths
        assert all(path[:-1] in best_paths | {()} for path in best_paths), "a node without its parent"
        # Preorder with the likeliest child first is the lexicographic order of rank paths.
        assert paths == sorted(paths)


def test_the_greedy_spine_comes_first() -> None:
    rng = np.random.default_rng(0)
    c = TreeCandidates(7, distinct_ids(rng, 7, 16), log_probabilities(rng, 7, 16), max_depth=7, max_nodes=64)
    (tree,) = build_trees([c], 64)
    depth = int(tree.depths.max())
    assert tree.num_nodes == 64
    spine = int(np.flatnonzero(np.diff(tree.depths) != 1)[0])
    assert tree.token_ids[: spine + 1].tolist() == [7, *c.token_ids[:spine, 0].tolist()]
    assert 1 <= spine <= depth


def test_width_one_is_a_chain_of_the_first_candidates() -> None:
    rng = np.random.default_rng(1)
    c = TreeCandidates(7, distinct_ids(rng, 7, 8), log_probabilities(rng, 7, 8), max_depth=5, max_nodes=64, max_width=1)
    (tree,) = build_trees([c], 64)
    assert tree.depths.tolist() == [0, 1, 2, 3, 4, 5]
    assert tree.token_ids.tolist() == [7, *c.token_ids[:5, 0].tolist()]


def test_the_budget_goes_where_the_probability_is() -> None:
    """A sure sequence gets its whole chain before a doubtful one gets its second node; max_nodes frees the rest."""
    ids = np.arange(12, dtype=np.int32).reshape(4, 3)
    sure = np.log(np.array([[0.98, 0.01, 0.005]] * 4, dtype=np.float32))
    doubtful = np.log(np.array([[0.4, 0.3, 0.2]] * 4, dtype=np.float32))
    batch = [TreeCandidates(0, ids, doubtful, 4, 100), TreeCandidates(1, ids, sure, 4, 100)]
    assert [tree.num_nodes for tree in build_trees(batch, 5)] == [1, 4]
    batch = [TreeCandidates(0, ids, doubtful, 4, 100), TreeCandidates(1, ids, sure, 4, 2)]
    assert [tree.num_nodes for tree in build_trees(batch, 5)] == [3, 2]


def test_equal_sequences_share_by_depth_then_rank_then_order() -> None:
    ids = np.arange(4, dtype=np.int32).reshape(2, 2)
    batch = [TreeCandidates(0, ids, np.zeros((2, 2), np.float32), 2, 100)] * 3
    assert [tree.num_nodes for tree in build_trees(batch, 2)] == [1, 1, 0]
    assert [tree.depths.tolist() for tree in build_trees(batch, 6)] == [[0, 1, 1]] * 3


def test_nothing_to_draft_leaves_the_roots() -> None:
    empty = TreeCandidates(5, np.zeros((0, 0), np.int32), np.zeros((0, 0), np.float32), max_depth=7, max_nodes=8)
    assert build_trees([], 10) == []
    assert [tree.token_ids.tolist() for tree in build_trees([empty, empty], 10)] == [[5], [5]]


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_score_that_says_nothing_ends_the_list(bad: float) -> None:
    scores = np.array([[-0.5, bad, -0.6]], dtype=np.float32)
    (tree,) = build_trees([TreeCandidates(5, np.array([[1, 2, 3]], dtype=np.int32), scores, 1, 8)], 8)
    assert tree.token_ids.tolist() == [5, 1]


def test_a_full_batch_keeps_budget_and_soundness() -> None:
    rng = np.random.default_rng(2)
    batch = [
        TreeCandidates(
            s, distinct_ids(rng, 15, 64), log_probabilities(rng, 15, 50)[:, [*range(50), *[49] * 14]], 15, 64
        )
        for s in range(64)
    ]
    trees = build_trees(batch, 64 * 32)
    assert sum(tree.num_nodes for tree in trees) == 64 * 32
    for tree in trees:
        check_tree(tree, vocab_size=100, max_rows=65, max_depth=15)


def test_building_needs_no_torch() -> None:
    code = (
        "import sys; import dflash_core.trees.build as b, dflash_core.trees.structure, dflash_core.trees.walk, "
        "dflash_core.sampling.noise; b.warm_up(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    warm_up()
