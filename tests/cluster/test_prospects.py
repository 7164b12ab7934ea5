"""The rates of all numbers of drafts and nodes, against a double loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.router.prospects import (
    NODES,
    Prospects,
    cycle_s,
    cycles_s,
    num_drafts_to_try,
    prospects,
    shape_at,
    warm_up,
)

warm_up()


@given(
    st.lists(st.floats(0.0, 10.0), max_size=12),
    st.integers(0, 5),
    st.integers(40, 300),
    st.sampled_from([1, 2]),
    st.integers(1, 256),
)
def test_the_best_of_every_number_of_drafts(
    gains: list[float], undrafted: int, most_rows: int, num_micro_batches: int, most_nodes: int
) -> None:
    levels = np.sort(np.array(gains, np.float64))[::-1]
    num_roots = len(levels) + undrafted + 1
    verify_s = np.cumsum(np.random.default_rng(most_rows).random(most_rows + 1)) * 1e-3
    counts = num_drafts_to_try(len(levels))
    between_s = np.linspace(1e-3, 9e-3, len(counts))
    sizes = NODES[most_nodes >= NODES]
    found = prospects(counts, levels, float(num_roots), num_roots, verify_s, between_s, num_micro_batches, sizes)
    assert found.num_drafts.tolist() == counts.tolist()
    for place, count in enumerate(counts.tolist()):
        options = []
        for index, size in enumerate(sizes.tolist()):
            rows = num_roots + int(np.rint(count * size))
            if index > 0 and rows > most_rows:
                continue
            tokens = num_roots + sum(levels[:count]) * shape_at(size)
            verify, between = verify_s[min(rows, most_rows)], between_s[place]
            seconds = verify + between if num_micro_batches == 1 else max(verify, (verify + between) / 2)
            options.append(tokens / seconds)
        assert found.rates[place] == pytest.approx(max(options))


def test_numbers_of_drafts() -> None:
    assert num_drafts_to_try(0).tolist() == [0]
    assert num_drafts_to_try(1).tolist() == [0, 1]
    assert num_drafts_to_try(6).tolist() == [0, 1, 2, 4, 6]


def test_more_nodes_bring_more() -> None:
    assert NODES.tolist() == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]
    gains = [shape_at(size) for size in NODES.tolist()]
    assert (np.diff(gains) > 0).all()
    assert [shape_at(size) for size in (32.0, 1e-6, 0.0, 10_000.0)] == [1.0, gains[0], gains[0], gains[-1]]
    assert shape_at(8.0 * 2.0**0.25) == pytest.approx(0.75 * gains[5] + 0.25 * gains[6])


def test_what_lies_between_rounds_hides_behind_the_other_half() -> None:
    assert cycle_s(0.01, 0.006, 1) == pytest.approx(0.016)
    assert cycle_s(0.01, 0.006, 2) == pytest.approx(0.01)
    assert cycle_s(0.01, 0.03, 2) == pytest.approx(0.02)
    assert cycles_s(np.array([0.01, 0.04]), 0.03, 2) == pytest.approx([0.02, 0.04])


@pytest.mark.parametrize(("drafted_s", "best"), [(19e-3, 1), (20e-3, 0), (25e-3, 0)])
def test_drafts_must_promise_more_than_none(drafted_s: float, best: int) -> None:
    found = Prospects(num_drafts_to_try(1), np.array([1.0, 2.0]), np.array([10e-3, drafted_s]), np.zeros(2))
    assert found.best == best
