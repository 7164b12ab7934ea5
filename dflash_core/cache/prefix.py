"""`PrefixCache`: finds the blocks that hold a sequence's first tokens already, by a chained hash of their contents.

A block's hash covers everything that its keys, values and features depend on: the tokens in it, through its parent's
hash all tokens before it, and through the root of the chain the weights that computed them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from dflash_core.cache.blocks import BlockManager
from dflash_core.contracts import TokenIds

_HASH_BYTES = 16
_TOKEN_BYTES = 4


@dataclass(slots=True)
class HashChain:
    """How far a sequence's full blocks are hashed: the first `num_blocks`, the last of them to `last_hash`."""

    last_hash: bytes
    num_blocks: int = 0


class PrefixCache:
    """Over the blocks of one pool. `salt` names whatever else decides the contents: sequences of different salts
    never share."""

    def __init__(self, blocks: BlockManager, *salt: str) -> None:
        self._blocks = blocks
        self._root = _root_hash(salt)

    def take(self, block_table: list[int], token_ids: TokenIds) -> HashChain:
        """Appends to an empty table the blocks of the longest prefix of `token_ids` that is found.

        At most ⌊(len(token_ids) − 1) / kv_block_size⌋: one token at least is left to compute, or there were no logits.
        """
        assert not block_table, f"hits go to an empty table, this one has {len(block_table)} blocks"
        chain = HashChain(self._root)
        size, data = self._blocks.kv_block_size * _TOKEN_BYTES, _token_bytes(token_ids[:-1])
        for start in range(0, len(data) // size * size, size):
            block_hash = _child_hash(chain.last_hash, data[start : start + size])
            if not self._blocks.share(block_table, block_hash):
                break
            chain.last_hash = block_hash
            chain.num_blocks += 1
        return chain

    def publish(self, block_table: Sequence[int], token_ids: Sequence[int], chain: HashChain) -> None:
        """Makes the full blocks beyond the chain findable, and moves the chain on.

        `token_ids`: the sequence's committed tokens, whose keys, values and features are all written.
        """
        size = self._blocks.kv_block_size
        for index in range(chain.num_blocks, len(token_ids) // size):
            tokens = np.asarray(token_ids[index * size : (index + 1) * size], np.int32)
            chain.last_hash = _child_hash(chain.last_hash, _token_bytes(tokens))
            chain.num_blocks += 1
            self._blocks.publish(block_table[index], chain.last_hash)


def _root_hash(salt: Sequence[str]) -> bytes:
    root = blake2b(digest_size=_HASH_BYTES)
    for part in salt:
        encoded = part.encode()
        root.update(len(encoded).to_bytes(8, "little") + encoded)  # the length: ("ab", "c") is not ("a", "bc")
    return root.digest()


def _token_bytes(token_ids: TokenIds) -> bytes:
    return token_ids.astype("<i4").tobytes()


def _child_hash(parent: bytes, token_bytes: bytes) -> bytes:
    """Both have a fixed length, so nothing need separate them."""
    return blake2b(parent + token_bytes, digest_size=_HASH_BYTES).digest()
