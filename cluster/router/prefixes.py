"""Which prefixes a target has probably cached: hashes of what was sent there, the least recently used forgotten.

The target's own cache decides what is a hit (`dflash_core/cache/prefix.py`). This is the router's guess of it, which
costs nothing but time when it is wrong: hence 64 bits without secrets, in blocks of a size of its own.

    tokens    │ 0 … 15 │ 16 … 31 │ 32 … 47 │ rest
    hashes         h₀       h₁        h₂            hᵢ covers all tokens before the end of block i
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dflash_core.contracts import TokenIds

PREFIX_BLOCK_TOKENS = 16

_TOKEN_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_POSITION_FACTOR = np.uint64(0xD1B54A32D192ED03)


def extend_hashes(hashes: list[int], token_ids: Sequence[int] | TokenIds) -> None:
    """Appends the hashes of the whole blocks of `token_ids`, which follow on those that are hashed already.

    `token_ids`: [num_tokens], from position `len(hashes) * PREFIX_BLOCK_TOKENS` on; a rest is left for the next time.
    """
    num_tokens = len(token_ids) // PREFIX_BLOCK_TOKENS * PREFIX_BLOCK_TOKENS
    if num_tokens == 0:
        return
    start = len(hashes) * PREFIX_BLOCK_TOKENS
    tokens = np.asarray(token_ids[:num_tokens], dtype=np.int64).astype(np.uint64)
    # A sum over tokens each mixed with its place: one pass for all prefixes, and equal only for equal order.
    sums = np.cumsum(
        _mix(tokens * _TOKEN_FACTOR + np.arange(start, start + num_tokens, dtype=np.uint64) * _POSITION_FACTOR)
    )
    if hashes:
        sums += np.uint64(hashes[-1])
    hashes += sums[PREFIX_BLOCK_TOKENS - 1 :: PREFIX_BLOCK_TOKENS].tolist()


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64: every bit of the input changes half of the output's."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class KnownPrefixes:
    """The blocks of one target's cache, as far as they can be known from here: at most `max_blocks` of them.

    Where a block is known, all before it are: whoever adds a sequence touches its first block last, so that a prefix
    is forgotten from its end. So the longest match is found by bisection.
    """

    def __init__(self, max_blocks: int) -> None:
        assert max_blocks > 0, f"{max_blocks} blocks"
        self._max_blocks = max_blocks
        self._recent: OrderedDict[int, None] = OrderedDict()  # the least recently used first

    def __len__(self) -> int:
        return len(self._recent)

    def add(self, hashes: Sequence[int]) -> None:
        """All blocks of one sequence, from its first token on."""
        recent = self._recent
        for block_hash in reversed(hashes[: self._max_blocks]):
            recent[block_hash] = None
            recent.move_to_end(block_hash)
        while len(recent) > self._max_blocks:
            recent.popitem(last=False)

    def match(self, hashes: Sequence[int]) -> int:
        """How many tokens the longest known prefix has: a multiple of `PREFIX_BLOCK_TOKENS`."""
        return bisect_left(hashes, True, key=self._is_unknown) * PREFIX_BLOCK_TOKENS

    def _is_unknown(self, block_hash: int) -> bool:
        return block_hash not in self._recent
