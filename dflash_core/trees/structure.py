"""What preorder depths say about a tree: parents, subtree ends, and whether it is a tree at all.

Depths of several trees may be packed one after the other: a row of depth 0 starts a tree, and row numbers count over
the whole pack. An example, drawn as a root with two children, the first of which has two of its own:

    row      0   1   2   3   4
    depth    0   1   2   2   1
    parent  −1   0   1   1   0
    end      5   4   3   4   5      the subtree of row k is rows k … end − 1
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dflash_core.contracts import DraftTree
from dflash_core.errors import ProtocolError
from dflash_core.jit import jit

Ints = npt.NDArray[np.int32]

NO_PARENT = -1

_SOUND, _WRONG_STEP, _TOO_DEEP, _WRONG_TOKEN, _TWIN = range(5)


def parents(depths: Ints) -> Ints:
    """The row of each row's parent, int32 `[num_rows]`; `NO_PARENT` for roots. The depths must be sound."""
    return _parents(depths)


def end_rows(depths: Ints) -> Ints:
    """The first row after each row's subtree, int32 `[num_rows]`: the `end_row` of ragged attention."""
    return _end_rows(depths)


def root_only(root_token: int) -> DraftTree:
    """The tree of plain decoding."""
    return DraftTree(token_ids=np.array([root_token], dtype=np.int32), depths=np.zeros(1, dtype=np.int32))


def check_tree(tree: DraftTree, vocab_size: int, max_rows: int, max_depth: int) -> None:
    """Raises `ProtocolError` unless the arrays are one tree in preorder within the limits, its siblings distinct.

    Args:
        max_rows: root included.
        max_depth: the root's depth is 0.
    """
    token_ids, depths = tree.token_ids, tree.depths
    if token_ids.ndim != 1 or token_ids.shape != depths.shape:
        raise ProtocolError(f"token_ids {token_ids.shape} and depths {depths.shape} of a tree must be equal vectors")
    if not 1 <= len(depths) <= max_rows:
        raise ProtocolError(f"a tree must have 1 to {max_rows} rows, got {len(depths)}")
    if depths[0] != 0:
        raise ProtocolError(f"row 0 of a tree must be the root at depth 0, got depth {depths[0]}")
    fault, row = _first_fault(token_ids, depths, vocab_size, max_depth)
    if fault == _WRONG_STEP:
        raise ProtocolError(f"row {row} of a tree has depth {depths[row]} after depth {depths[row - 1]}")
    if fault == _TOO_DEEP:
        raise ProtocolError(f"a tree may be {max_depth} deep, got depth {depths[row]} in row {row}")
    if fault == _WRONG_TOKEN:
        raise ProtocolError(f"token ids of a tree must lie in [0, {vocab_size}), got {token_ids[row]} in row {row}")
    if fault == _TWIN:
        raise ProtocolError(f"row {row} of a tree has the token {token_ids[row]} of an earlier child of its parent")


def warm_up() -> None:
    """Compiles (or loads from the cache) this module, so that the first round does not wait for it."""
    tree = root_only(0)
    check_tree(tree, vocab_size=1, max_rows=1, max_depth=0)
    parents(tree.depths)
    end_rows(tree.depths)


@jit
def _first_fault(token_ids: Ints, depths: Ints, vocab_size: int, max_depth: int) -> tuple[int, int]:
    """The first row that makes the tree unsound and what is wrong with it; row 0 is known to be at depth 0."""
    last_of_depth = np.empty(len(depths) + 1, np.int32)
    previous_sibling = np.empty(len(depths), np.int32)
    for row in range(len(depths)):
        depth = depths[row]
        if row > 0 and not 1 <= depth <= depths[row - 1] + 1:
            return _WRONG_STEP, row
        if depth > max_depth:
            return _TOO_DEEP, row
        if not 0 <= token_ids[row] < vocab_size:
            return _WRONG_TOKEN, row
        # A row just below its parent is a first child; any other follows a sibling's subtree.
        previous_sibling[row] = last_of_depth[depth] if row > 0 and depth <= depths[row - 1] else NO_PARENT
        last_of_depth[depth] = row
        sibling = previous_sibling[row]
        while sibling >= 0:
            if token_ids[sibling] == token_ids[row]:
                return _TWIN, row
            sibling = previous_sibling[sibling]
    return _SOUND, -1


@jit
def _parents(depths: Ints) -> Ints:
    last_of_depth = np.empty(len(depths) + 1, np.int32)
    parent_rows = np.empty(len(depths), np.int32)
    for row in range(len(depths)):
        depth = depths[row]
        parent_rows[row] = last_of_depth[depth - 1] if depth > 0 else NO_PARENT
        last_of_depth[depth] = row
    return parent_rows


@jit
def _end_rows(depths: Ints) -> Ints:
    """Backwards: a row's subtree ends at the nearest later row that is not deeper, found by hopping over ends."""
    num_rows = len(depths)
    ends = np.empty(num_rows, np.int32)
    for row in range(num_rows - 1, -1, -1):
        end = row + 1
        while end < num_rows and depths[end] > depths[row]:
            end = ends[end]
        ends[row] = end
    return ends
