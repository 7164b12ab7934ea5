"""The order of keys, against numpy's sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dflash_core.trees.falling import falling

falling(np.ones(2))  # compiled before hypothesis looks at the clock

_keys = st.one_of(
    st.floats(0.0, 32.0), st.sampled_from([0.0, 1e-9, 0.25, 16.25, 24.0]), st.floats(0.125, np.nextafter(0.125, 1.0))
)


@given(st.lists(_keys, max_size=300))
def test_the_largest_first(keys: list[float]) -> None:
    assert falling(np.array(keys, np.float64)).tolist() == sorted(keys, reverse=True)


@pytest.mark.parametrize("num_keys", [255, 256, 257, 5_000])
@pytest.mark.parametrize("outlier", [0.0, 1e-9, 32.0])
def test_many_nearly_equal_keys(num_keys: int, outlier: float) -> None:
    """All in one bucket but one."""
    rng = np.random.default_rng(num_keys)
    keys = np.append(rng.uniform(0.3, np.nextafter(0.3, 1.0) + 1e-12, num_keys), outlier)
    given = keys.copy()
    assert falling(keys).tolist() == np.sort(given)[::-1].tolist()
    assert keys.tolist() == given.tolist()


def test_equal_keys() -> None:
    assert falling(np.full(1_000, 0.5)).tolist() == [0.5] * 1_000
