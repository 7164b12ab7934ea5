"""Parents and intervals of packed trees against ancestor sets, and every way a tree can be wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dflash_core.contracts import DraftTree
from dflash_core.errors import ProtocolError
from dflash_core.trees.structure import check_tree, end_rows, parents, root_only
from tests.core.tree_oracle import ancestors, random_depths, slow_parents


@given(st.lists(random_depths(), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_parents_and_intervals_of_a_pack(trees: list[np.ndarray]) -> None:
    depths = np.concatenate(trees)
    parent_rows = np.concatenate(
        [
            [p if p < 0 else p + start for p in slow_parents(tree.tolist())]
            for tree, start in zip(trees, np.cumsum([0, *map(len, trees[:-1])]), strict=True)
        ]
    )
    assert parents(depths).tolist() == parent_rows.tolist()
    ends = end_rows(depths)
    assert parents(depths).dtype == ends.dtype == np.int32
    for row in range(len(depths)):
        seen_by = {r for r in range(len(depths)) if row in ancestors(parent_rows.tolist(), r)}
        assert seen_by == set(range(row, ends[row]))


def test_the_docstrings_example() -> None:
    depths = np.array([0, 1, 2, 2, 1], dtype=np.int32)
    assert parents(depths).tolist() == [-1, 0, 1, 1, 0]
    assert end_rows(depths).tolist() == [5, 4, 3, 4, 5]


@given(random_depths())
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_sound_trees_pass(depths: np.ndarray) -> None:
    token_ids = np.arange(len(depths), dtype=np.int32)
    check_tree(DraftTree(token_ids, depths), vocab_size=40, max_rows=40, max_depth=40)


def test_cousins_may_share_a_token_and_root_only_is_sound() -> None:
    check_tree(root_only(9), vocab_size=10, max_rows=1, max_depth=0)
    check_tree(tree([5, 1, 3, 2, 3, 5], [0, 1, 2, 1, 2, 3]), vocab_size=10, max_rows=6, max_depth=3)


def tree(token_ids: list[int], depths: list[int]) -> DraftTree:
    return DraftTree(np.array(token_ids, dtype=np.int32), np.array(depths, dtype=np.int32))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (tree([], []), "1 to 5 rows, got 0"),
        (tree([1] * 6, [0, 1, 2, 3, 3, 3]), "1 to 5 rows, got 6"),
        (tree([1, 2], [0]), r"\(2,\) and depths \(1,\)"),
        (tree([1], [1]), "got depth 1"),
        (tree([1, 2], [0, 0]), "row 1 of a tree has depth 0 after depth 0"),
        (tree([1, 2, 3], [0, 1, -1]), "row 2 of a tree has depth -1 after depth 1"),
        (tree([1, 2, 3], [0, 1, 3]), "row 2 of a tree has depth 3 after depth 1"),
        (tree([1, 2, 3, 4], [0, 1, 2, 3]), "2 deep, got depth 3 in row 3"),
        (tree([1, 10], [0, 1]), r"\[0, 10\), got 10 in row 1"),
        (tree([-1, 1], [0, 1]), r"\[0, 10\), got -1 in row 0"),
        (tree([1, 2, 3, 2], [0, 1, 2, 1]), "row 3 of a tree has the token 2"),
    ],
)
def test_unsound_trees_are_refused_with_both_values(bad: DraftTree, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        check_tree(bad, vocab_size=10, max_rows=5, max_depth=2)


@given(st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_arrays_are_either_refused_or_a_tree(data: st.DataObject) -> None:
    """What `check_tree` lets through has a parent for every row: nothing from the wire can index out of bounds."""
    num_rows = data.draw(st.integers(0, 8))
    integers = st.lists(st.integers(-2, 6), min_size=num_rows, max_size=num_rows)
    candidate = tree(data.draw(integers), data.draw(integers))
    try:
        check_tree(candidate, vocab_size=6, max_rows=7, max_depth=4)
    except ProtocolError:
        return
    parent_rows = slow_parents(candidate.depths.tolist())
    assert parents(candidate.depths).tolist() == parent_rows
    edges = list(zip(parent_rows, candidate.token_ids.tolist(), strict=True))
    assert len(set(edges)) == len(edges)


@given(random_depths(), st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_twins_are_found_wherever_they_are(depths: np.ndarray, data: st.DataObject) -> None:
    token_ids = np.array(
        data.draw(st.lists(st.integers(0, 5), min_size=len(depths), max_size=len(depths))), dtype=np.int32
    )
    edges = list(zip(slow_parents(depths.tolist()), token_ids.tolist(), strict=True))
    tree = DraftTree(token_ids, depths)
    if len(set(edges)) == len(edges):
        check_tree(tree, vocab_size=6, max_rows=40, max_depth=40)
    else:
        with pytest.raises(ProtocolError, match="earlier child"):
            check_tree(tree, vocab_size=6, max_rows=40, max_depth=40)
