"""A block table as an array, against the list it follows."""

from __future__ import annotations

import numpy as np
import pytest

from dflash_core.cache.tables import TableArray


@pytest.mark.parametrize("seed", range(20))
def test_it_follows_a_list_that_grows_and_is_cut_behind_what_is_fixed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    array, table, num_fixed = TableArray(), list[int](), 0
    for _ in range(60):
        table += rng.integers(0, 1000, int(rng.integers(0, 12))).tolist()
        del table[int(rng.integers(num_fixed, len(table) + 1)) :]
        table += rng.integers(0, 1000, int(rng.integers(0, 4))).tolist()
        num_fixed = int(rng.integers(num_fixed, len(table) + 1))
        np.testing.assert_array_equal(array.of(table, num_fixed), np.array(table, np.int32))
