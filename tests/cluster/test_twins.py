"""Twins among the candidates of a depth, against sets of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cluster.wire.twins import has_twins, warm_up

warm_up()

# Few tokens, so that twins are frequent; and some that differ by what the pass cannot tell apart at first sight.
tokens = st.builds(lambda low, high: low + (high << 14), st.integers(0, 3), st.integers(0, 30))
shapes = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=4)


@given(shapes, st.data())
def test_a_token_that_is_twice_in_a_depth_is_found(found: list[tuple[int, int]], data: st.DataObject) -> None:
    rows = [data.draw(st.lists(tokens, min_size=width, max_size=width)) for depth, width in found for _ in range(depth)]
    flat = np.array([token for row in rows for token in row], np.int32)
    expected = any(len(set(row)) < len(row) for row in rows)
    assert has_twins(flat, [depth for depth, _ in found], [width for _, width in found]) == expected


def test_wide_drafts_of_a_large_vocabulary() -> None:
    rng = np.random.default_rng(0)
    rows = np.array([rng.choice(151_936, 64, replace=False) for _ in range(240)], np.int32)
    assert not has_twins(rows.ravel(), [15] * 16, [64] * 16)
    rows[200, 63] = rows[200, 5]
    assert has_twins(rows.ravel(), [15] * 16, [64] * 16)
