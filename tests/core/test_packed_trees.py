"""Trees in columns read as the trees that they are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dflash_core.contracts import DraftTree, PackedTreeRows, SequenceKey, TreeRows


def _rows(place: int, num_rows: int) -> TreeRows:
    depths = np.arange(num_rows, dtype=np.int32)
    return TreeRows(SequenceKey(f"s{place}", place), 100 + place, DraftTree(depths + 10 * place, depths))


def _plain(rows: TreeRows) -> object:
    return rows.key, rows.root_position, rows.tree.token_ids.tolist(), rows.tree.depths.tolist()


@given(st.lists(st.integers(1, 5), max_size=6), st.slices(6))
def test_packed_trees_read_as_a_tuple(sizes: list[int], part: slice) -> None:
    trees = tuple(_rows(place, size) for place, size in enumerate(sizes))
    packed = PackedTreeRows.of(trees)
    assert [_plain(rows) for rows in packed] == [_plain(rows) for rows in trees]
    assert [_plain(rows) for rows in packed[part]] == [_plain(rows) for rows in trees[part]]
    assert [_plain(packed[place]) for place in range(len(packed))] == [_plain(rows) for rows in trees]
    assert (len(packed), list(packed.num_rows), packed.token_ids.dtype) == (len(sizes), sizes, np.int32)
    assert PackedTreeRows.of(packed) is packed
    with pytest.raises(IndexError):
        packed[len(sizes)]
