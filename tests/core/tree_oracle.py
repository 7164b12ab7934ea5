"""Random trees, and what the fast paths of `dflash_core.trees` compute, node by node."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st


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
