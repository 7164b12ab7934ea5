"""How far it is kept what levels promise."""

from __future__ import annotations

import pytest

from cluster.router.promises import Promises


def test_a_broken_promise_is_believed_until_nothing_is_seen_of_it() -> None:
    promises = Promises()
    for _ in range(100):
        promises.observe(1, 10.0, 6.0)
    assert promises.kept(1) == pytest.approx(0.6)
    assert Promises().kept(1) == 1.0
    for _ in range(1_000):
        promises.fade(1)
    assert promises.kept(1) == pytest.approx(1.0, abs=0.01)


def test_what_was_seen_with_one_micro_batch_goes_for_two_until_they_are_seen_and_again_when_they_are_not() -> None:
    promises = Promises()
    for _ in range(100):
        promises.observe(1, 10.0, 12.0)
    assert promises.kept(2) == pytest.approx(1.2)
    for _ in range(100):
        promises.observe(2, 10.0, 8.0)
    assert promises.kept(2) == pytest.approx(0.8)
    assert 0.8 < promises.kept(1) < 1.0, "the levels have changed since"
    for _ in range(1_000):
        promises.observe(2, 10.0, 8.0)
    assert promises.kept(1) == pytest.approx(0.8, abs=0.01)
