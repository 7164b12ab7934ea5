"""How far it is kept what levels promise."""

from __future__ import annotations

import pytest

from cluster.router.promises import Promises


def test_a_broken_promise_is_believed_until_nothing_is_seen_of_it() -> None:
    promises = Promises()
    for _ in range(100):
        promises.observe(1, 10.0, 6.0)
    assert promises.kept(1) == pytest.approx(0.6, abs=0.01)
    assert Promises().kept(1) == 1.0
    for _ in range(1_000):
        promises.fade(1)
    assert promises.kept(1) == pytest.approx(1.0, abs=0.01)


def test_what_was_seen_with_one_micro_batch_goes_for_two_until_they_are_seen_and_again_when_they_are_not() -> None:
    promises = Promises()
    for _ in range(100):
        promises.observe(1, 10.0, 12.0)
    assert promises.kept(2) == pytest.approx(1.2, abs=0.01)
    for _ in range(100):
        promises.observe(2, 10.0, 8.0)
    assert promises.kept(2) == pytest.approx(0.8, abs=0.01)
    assert 0.8 < promises.kept(1) < 1.0, "the levels have changed since"
    for _ in range(1_000):
        promises.observe(2, 10.0, 8.0)
    assert promises.kept(1) == pytest.approx(0.8, abs=0.01)


def test_a_few_drafts_tell_little() -> None:
    promises = Promises()
    for _ in range(3):
        promises.observe(1, 1.5, 0.0)
    assert 0.85 < promises.kept(1) < 0.95
    for _ in range(3):
        promises.observe(2, 1.5, 0.0)
    assert 0.85 < promises.kept(2) < 0.95


def test_many_sequences_tell_as_much_in_one_round_as_one_in_many() -> None:
    one, many = Promises(), Promises()
    for _ in range(16):
        one.observe(1, 1.5, 1.0)
    many.observe(1, 24.0, 16.0)
    assert one.kept(1) == pytest.approx(many.kept(1), abs=0.02)
