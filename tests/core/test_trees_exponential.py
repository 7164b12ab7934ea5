"""The search's exponentials against the C library's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dflash_core.trees.exponential import exponentials, whole_row

_ULP = 2.0**-52


@pytest.mark.parametrize("num_values", [0, 1, 24, 31, 32, 33, 64, 1000])
def test_they_are_exact_to_two_units_in_the_last_place(num_values: int) -> None:
    given = np.random.default_rng(num_values).uniform(-60.0, 60.0, whole_row(num_values))
    values = given.copy()
    exponentials(values, num_values, np.empty(len(values), np.int64))
    for value, found in zip(given[:num_values].tolist(), values.tolist(), strict=False):
        assert found == pytest.approx(math.exp(value), rel=2 * _ULP, abs=0.0)


def test_beyond_their_range_they_are_those_of_its_ends() -> None:
    values = np.zeros(32)
    given = [0.0, -0.0, 700.0, -700.0, 701.0, -1e9, math.inf, -math.inf]
    values[: len(given)] = given
    exponentials(values, len(given), np.empty(32, np.int64))
    most, least = math.exp(700.0), math.exp(-700.0)
    assert values[: len(given)] == pytest.approx([1.0, 1.0, most, least, most, least, most, least], rel=2 * _ULP)


def test_a_row_is_written_to_its_end_and_no_further() -> None:
    values = np.full(96, 1.0)
    exponentials(values, 33, np.empty(64, np.int64))
    assert np.all(values[:64] != 1.0)
    assert np.all(values[64:] == 1.0)
