"""Token histories and their matches against scans of plain lists."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dflash_core.trees.histories import TokenHistories
from dflash_core.trees.matches import bigram_bucket, is_marked, longest_match
from tests.core.tree_search_oracle import slow_bucket, slow_match

WINDOW = 16


def held(histories: TokenHistories, slot: int) -> list[int]:
    tokens: list[int] = histories.arrays.tokens[slot, : histories.arrays.lens[slot]].tolist()
    return tokens


def slow_extend(tokens: list[int], new: list[int], window: int) -> list[int]:
    """The older half goes when it is full; more where much comes at once."""
    new = new[-window:]
    if len(tokens) + len(new) > window:
        num_kept = min(len(tokens), window // 2, window - len(new))
        tokens = tokens[len(tokens) - num_kept :]
    return tokens + new


def check_match(histories: TokenHistories, slot: int, tail: list[int]) -> tuple[int, int]:
    arrays = histories.arrays
    found = longest_match(
        np.array(([-1] * 5 + tail)[: -len(tail) - 1 : -1][:5] + [-1] * (5 - len(tail)), np.int32),
        arrays.tokens[slot],
        int(arrays.lens[slot]),
        arrays.links[slot],
        arrays.heads[slot],
    )
    assert found == slow_match(tail, held(histories, slot), arrays.heads.shape[1])
    if found[1]:
        assert is_marked(arrays.marks[slot], bigram_bucket(tail[-2], tail[-1], arrays.heads.shape[1]))
    return found


TOKENS = st.lists(st.integers(0, 3), max_size=2 * WINDOW + 3)


@given(st.lists(st.tuples(st.integers(0, 2), TOKENS), max_size=12), st.lists(st.integers(0, 3), min_size=2, max_size=5))
@settings(max_examples=200, deadline=None)
def test_windows_and_matches_are_those_of_plain_lists(steps: list[tuple[int, list[int]]], tail: list[int]) -> None:
    histories = TokenHistories(window=WINDOW)
    slots = [histories.open() for _ in range(3)]
    expected: list[list[int]] = [[], [], []]
    for index, new in steps:
        histories.extend([slots[index]], [new])
        expected[index] = slow_extend(expected[index], new, WINDOW)
        for slot, tokens in zip(slots, expected, strict=True):
            assert held(histories, slot) == tokens
            check_match(histories, slot, tail)
            if len(tokens) >= 2:  # the end itself
                check_match(histories, slot, tokens[-5:])


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))
def test_buckets_are_those_of_exact_integers(before: int, token: int) -> None:
    assert bigram_bucket(before, token, 1 << 14) == slow_bucket(before, token, 1 << 14)


def test_one_call_extends_many() -> None:
    histories = TokenHistories(window=WINDOW)
    a, b, c = histories.open(), histories.open(), histories.open()
    histories.extend([c, a], [[1, 2], [3]])
    histories.extend([b, c], [[], [4]])
    histories.extend([], [])
    assert [held(histories, slot) for slot in (a, b, c)] == [[3], [], [1, 2, 4]]


@pytest.mark.parametrize(("tail", "expected"), [([1, 2], (3, 2)), ([9, 1, 2], (5, 3)), ([2, 1], (-1, 0))])
def test_the_longest_match_wins_and_then_the_latest(tail: list[int], expected: tuple[int, int]) -> None:
    histories = TokenHistories()
    slot = histories.open()
    histories.extend([slot], [[9, 1, 2, 5, 8, 1, 2, 4, 7, 1, 2, 3]])
    assert check_match(histories, slot, tail) == expected


def test_slots_are_used_again_and_empty() -> None:
    histories = TokenHistories(window=WINDOW)
    slot = histories.open()
    histories.extend([slot], [[1, 2, 3, 1, 2]])
    histories.close(slot)
    assert histories.num_open == 0
    with pytest.raises(AssertionError):
        histories.close(slot)
    assert histories.open() == slot
    assert held(histories, slot) == []
    histories.extend([slot], [[1, 2]])
    assert check_match(histories, slot, [1, 2]) == (-1, 0)


def test_growing_keeps_what_was_there() -> None:
    histories = TokenHistories(window=WINDOW)
    slots = [histories.open() for _ in range(100)]
    assert len(set(slots)) == histories.num_open == 100
    histories.extend(slots, [[slot % 7, 1, slot % 5, slot % 7, 1] for slot in slots])
    slots += [histories.open() for _ in range(100)]
    for slot in slots[:100]:
        assert held(histories, slot) == [slot % 7, 1, slot % 5, slot % 7, 1]
        assert check_match(histories, slot, [slot % 7, 1]) == (slot % 5, 2)
    assert all(held(histories, slot) == [] for slot in slots[100:])
