"""Committed tokens of many sequences, indexed by their bigrams: where did this sequence last have these two tokens?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dflash_core.jit import jit
from dflash_core.trees.scoring import Ints, bigram_bucket

Longs = npt.NDArray[np.int64]

_FIRST_SLOTS = 16


class TokenHistories:
    """The latest tokens of each sequence, in one arena that a single pass over a batch can read.

    A slot holds at most `window` tokens, a power of two; when it is full, the older half is forgotten.
    """

    def __init__(self, window: int = 8192) -> None:
        assert window >= 8, window
        assert window & (window - 1) == 0, window
        self._window = window
        self._free: list[int] = []
        self.lens: Longs = np.zeros(0, np.int64)  # [slots]
        self.tokens = np.zeros((0, window), np.int32)
        self.links = np.zeros((0, window), np.int32)  # 1 + the position before with the same bigram bucket; 0: none
        self.heads = np.zeros((0, 2 * window), np.int32)  # 1 + the latest position of the bucket; 0: none
        self._grow(_FIRST_SLOTS)

    @property
    def num_open(self) -> int:
        return len(self.lens) - len(self._free)

    def open(self) -> int:
        """An empty slot."""
        if not self._free:
            self._grow(len(self.lens))
        slot = self._free.pop()
        self.lens[slot] = 0
        self.heads[slot] = 0
        return slot

    def close(self, slot: int) -> None:
        assert slot not in self._free, slot
        self._free.append(slot)

    def extend(self, slots: Sequence[int], new_tokens: Sequence[Sequence[int]]) -> None:
        """Appends to each slot the tokens committed since it was last told of any."""
        starts = np.zeros(len(slots) + 1, np.int64)
        np.cumsum([len(tokens) for tokens in new_tokens], out=starts[1:])
        flat = np.fromiter((token for tokens in new_tokens for token in tokens), np.int32, count=int(starts[-1]))
        _extend(np.array(slots, np.int64), flat, starts, self.lens, self.tokens, self.links, self.heads)

    def _grow(self, num_more: int) -> None:
        begin = len(self.lens)
        self.lens = np.concatenate([self.lens, np.zeros(num_more, np.int64)])
        for name in ("tokens", "links", "heads"):
            held = getattr(self, name)
            wider = np.zeros((begin + num_more, held.shape[1]), np.int32)
            wider[:begin] = held
            setattr(self, name, wider)
        self._free += range(begin + num_more - 1, begin - 1, -1)


@jit
def _append(token: int, num_tokens: int, tokens: Ints, links: Ints, heads: Ints) -> None:
    tokens[num_tokens] = token
    links[num_tokens] = 0
    if num_tokens > 0:
        bucket = bigram_bucket(tokens[num_tokens - 1], token, len(heads))
        links[num_tokens] = heads[bucket]
        heads[bucket] = num_tokens + 1


@jit
def _extend(
    slots: Longs,
    flat: Ints,  # the new tokens of all slots
    starts: Longs,  # [slots + 1]
    lens: Longs,
    tokens: Ints,
    links: Ints,
    heads: Ints,
) -> None:
    window = tokens.shape[1]
    for i in range(len(slots)):
        slot = slots[i]
        begin, end = starts[i], starts[i + 1]
        if end - begin > window:
            begin = end - window  # a long prompt: its end alone fits
            lens[slot] = 0
            heads[slot] = 0
        if lens[slot] + end - begin > window:
            kept = tokens[slot, lens[slot] - min(lens[slot], window // 2) : lens[slot]].copy()
            kept = kept[max(0, len(kept) + (end - begin) - window) :]
            heads[slot] = 0
            lens[slot] = 0
            for token in kept:
                _append(token, lens[slot], tokens[slot], links[slot], heads[slot])
                lens[slot] += 1
        for j in range(begin, end):
            _append(flat[j], lens[slot], tokens[slot], links[slot], heads[slot])
            lens[slot] += 1
