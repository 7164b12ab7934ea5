"""Known prefixes against plain tuples of tokens and a search from the first block on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.router.prefixes import PREFIX_BLOCK_TOKENS, KnownPrefixes, extend_hashes

Tokens = list[int]


def _hashes(tokens: Tokens) -> list[int]:
    hashes: list[int] = []
    extend_hashes(hashes, tokens)
    return hashes


def _blocks(tokens: Tokens) -> list[tuple[int, ...]]:
    """Each prefix of whole blocks."""
    ends = range(PREFIX_BLOCK_TOKENS, len(tokens) + 1, PREFIX_BLOCK_TOKENS)
    return [tuple(tokens[:end]) for end in ends]


class SlowPrefixes:
    """The same rules over a list: the least recently used first, a sequence's first block used last."""

    def __init__(self, max_blocks: int) -> None:
        self.max_blocks = max_blocks
        self.recent: list[tuple[int, ...]] = []

    def add(self, tokens: Tokens) -> None:
        for block in reversed(_blocks(tokens)[: self.max_blocks]):
            if block in self.recent:
                self.recent.remove(block)
            self.recent.append(block)
        self.recent = self.recent[-self.max_blocks :]

    def match(self, tokens: Tokens) -> int:
        num_tokens = 0
        for block in _blocks(tokens):
            if block not in self.recent:
                break
            num_tokens = len(block)
        return num_tokens


# Few blocks of few kinds, so that prefixes are often shared.
_some_tokens = st.lists(st.sampled_from([0, 1]), max_size=5).map(
    lambda kinds: [7 * kind + place for kind in kinds for place in range(PREFIX_BLOCK_TOKENS)]
)
_rest = st.integers(0, PREFIX_BLOCK_TOKENS - 1).map(lambda length: list(range(length)))


@given(st.integers(1, 8), st.lists(st.tuples(_some_tokens, _rest), max_size=20))
def test_same_matches_as_a_slow_search(max_blocks: int, sequences: list[tuple[Tokens, Tokens]]) -> None:
    known, slow = KnownPrefixes(max_blocks), SlowPrefixes(max_blocks)
    for begin, rest in sequences:
        tokens = begin + rest
        assert known.match(_hashes(tokens)) == slow.match(tokens)
        known.add(_hashes(tokens))
        slow.add(tokens)
        assert len(known) == len(slow.recent) <= max_blocks
    for begin, rest in sequences:
        assert known.match(_hashes(begin + rest)) == slow.match(begin + rest)


@given(st.lists(st.integers(0, 2**31 - 1), max_size=100), st.integers(0, 100))
def test_hashes_are_the_same_however_the_tokens_come(tokens: Tokens, cut: int) -> None:
    hashes = _hashes(tokens[:cut])
    extend_hashes(hashes, np.asarray(tokens[len(hashes) * PREFIX_BLOCK_TOKENS :], np.int32))
    assert hashes == _hashes(tokens)
    assert len(hashes) == len(tokens) // PREFIX_BLOCK_TOKENS


@pytest.mark.parametrize("place", [0, 15, 16, 47])
def test_a_hash_covers_every_token_before_its_end_and_their_order(place: int) -> None:
    tokens = list(range(100, 148))
    changed = list(tokens)
    changed[place] += 1
    swapped = list(tokens)
    swapped[place], swapped[place - 1] = swapped[place - 1], swapped[place]
    for other in (changed, swapped):
        first = next(index for index in range(48) if tokens[index] != other[index]) // PREFIX_BLOCK_TOKENS
        same = [one == two for one, two in zip(_hashes(tokens), _hashes(other), strict=True)]
        assert same == [True] * first + [False] * (3 - first)


def test_hashes_of_a_hundred_thousand_prefixes_differ() -> None:
    tokens = np.random.default_rng(0).integers(0, 2, 16 * 100_000).astype(np.int32)
    hashes: list[int] = []
    extend_hashes(hashes, tokens)
    assert len(set(hashes)) == 100_000
