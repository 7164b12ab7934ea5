"""Committed tokens of many sequences, indexed by their bigrams: where did this sequence last have these two tokens?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain

import numpy as np

from dflash_core.jit import jit, jit_borrowing
from dflash_core.trees.matches import Bytes, Histories, Shorts, bigram_bucket
from dflash_core.trees.scoring import Ints, Longs

_FIRST_SLOTS = 16
_LARGEST_WINDOW = 1 << 14  # positions are 16 bits wide
_CLOSED = -1  # length of a slot that no sequence has


class TokenHistories:
    """The latest tokens of each sequence, in one arena that a single pass over a batch can read.

    A slot holds at most `window` tokens, a power of two; when it is full, the older half is forgotten. It takes
    10.25 bytes a token.
    """

    def __init__(self, window: int = 8192) -> None:
        assert 8 <= window <= _LARGEST_WINDOW, window
        assert window & (window - 1) == 0, window
        self.arrays = _empty_arena(_FIRST_SLOTS, window)
        self._free = list(range(_FIRST_SLOTS - 1, -1, -1))

    @property
    def num_open(self) -> int:
        return len(self.arrays.lens) - len(self._free)

    def open(self) -> int:
        """An empty slot."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self.arrays.lens[slot] = 0
        self.arrays.marks[slot] = 0
        self.arrays.heads[slot] = 0
        return slot

    def close(self, slot: int) -> None:
        assert self.arrays.lens[slot] != _CLOSED, slot
        self.arrays.lens[slot] = _CLOSED
        self._free.append(slot)

    def extend(self, slots: Sequence[int], new_tokens: Sequence[Sequence[int]]) -> None:
        """Appends to each slot the tokens committed since it was last told of any. The slots must be distinct."""
        starts = np.array([*accumulate(map(len, new_tokens), initial=0)], np.int64)
        flat = np.fromiter(chain.from_iterable(new_tokens), np.int32, count=int(starts[-1]))
        _extend(np.array(slots, np.int64), flat, starts, self.arrays)

    def _grow(self) -> None:
        num_slots = len(self.arrays.lens)
        wider = _empty_arena(2 * num_slots, self.arrays.tokens.shape[1])
        for name, held in self.arrays._asdict().items():
            getattr(wider, name)[:num_slots] = held
        self.arrays = wider
        self._free += range(2 * num_slots - 1, num_slots - 1, -1)


def _empty_arena(num_slots: int, window: int) -> Histories:
    num_buckets = 2 * window
    return Histories(
        tokens=np.zeros((num_slots, window), np.int32),
        lens=np.full(num_slots, _CLOSED, np.int64),
        marks=np.zeros((num_slots, num_buckets // 8), np.uint8),
        links=np.zeros((num_slots, window), np.int16),
        heads=np.zeros((num_slots, num_buckets), np.int16),
    )


@jit_borrowing
def _append(token: int, num_tokens: int, tokens: Ints, marks: Bytes, links: Shorts, heads: Shorts) -> None:
    tokens[num_tokens] = token
    links[num_tokens] = 0
    if num_tokens > 0:
        bucket = bigram_bucket(tokens[num_tokens - 1], token, len(heads))
        marks[bucket >> 3] |= 1 << (bucket & 7)
        links[num_tokens] = heads[bucket]
        heads[bucket] = num_tokens + 1


@jit
def _extend(
    slots: Longs,
    flat: Ints,  # the new tokens of all slots
    starts: Longs,  # [slots + 1]
    histories: Histories,  # changed
) -> None:
    window = histories.tokens.shape[1]
    for i in range(len(slots)):
        slot = slots[i]
        tokens, marks = histories.tokens[slot], histories.marks[slot]
        links, heads = histories.links[slot], histories.heads[slot]
        held, end = histories.lens[slot], starts[i + 1]
        # Of a long prompt the end alone fits.
        begin = max(starts[i], end - window)
        if held + end - begin > window:
            num_kept = min(held, window // 2, window - (end - begin))
            kept = tokens[held - num_kept : held].copy()
            marks[:] = 0
            heads[:] = 0
            held = 0
            for token in kept:
                _append(token, held, tokens, marks, links, heads)
                held += 1
        for j in range(begin, end):
            _append(flat[j], held, tokens, marks, links, heads)
            held += 1
        histories.lens[slot] = held
