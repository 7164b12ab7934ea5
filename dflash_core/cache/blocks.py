"""`BlockManager`: who holds which KV block, and what free blocks still contain. Pure bookkeeping; a feature block lives
and dies with its KV block.

```
          extend                          publish
  blank ─────────► held by one sequence ──────────► held, findable ◄── share ── more sequences hold it
    ▲                │ free                              │ free, by the last holder
    └────────────────┘                                   ▼
    ▲        extend, once no block is blank            idle: free, findable until evicted
    └── (given out anew) ◄───────────────────────────── least recently freed first
```
"""

from __future__ import annotations

from collections import OrderedDict

from dflash_core.errors import DFlashError, ErrorCode


class OutOfBlocks(DFlashError):
    """Fewer blocks are free than are needed; nothing was allocated."""

    code = ErrorCode.RESOURCE_EXHAUSTED


class BlockManager:
    """Hands out blocks of `kv_block_size` tokens. A block table is the caller's list, which `extend` lengthens.

    Every call takes constant time per block that it moves.
    """

    def __init__(self, num_blocks: int, kv_block_size: int) -> None:
        assert num_blocks > 0, f"num_blocks must be positive, got {num_blocks}"
        assert kv_block_size > 0, f"kv_block_size must be positive, got {kv_block_size}"
        self.num_blocks = num_blocks
        self.kv_block_size = kv_block_size
        self._blank = list(range(num_blocks - 1, -1, -1))  # a stack: low ids first, then the last freed
        self._idle: OrderedDict[int, None] = OrderedDict()  # the least recently freed in front
        self._num_holders = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks  # of published blocks
        self._by_hash: dict[bytes, int] = {}

    @property
    def free_blocks(self) -> int:
        """Blocks that nobody holds, those that are still findable included: they are given out when needed."""
        return len(self._blank) + len(self._idle)

    @property
    def findable_blocks(self) -> int:
        """Published blocks, held or idle."""
        return len(self._by_hash)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` fill, the last one perhaps in part."""
        return -(-num_tokens // self.kv_block_size)

    def extend(self, block_table: list[int], num_tokens: int) -> None:
        """Appends blocks until the table holds `num_tokens`. Raises `OutOfBlocks`, the table unchanged.

        What was published is kept as long as possible, and what was used last for longest.
        """
        missing = self.blocks_for(num_tokens) - len(block_table)
        if missing <= 0:
            return
        if missing > self.free_blocks:
            raise OutOfBlocks(f"{missing} KV blocks are needed for {num_tokens} tokens, {self.free_blocks} are free")
        for _ in range(missing):
            block = self._blank.pop() if self._blank else self._evict()
            self._num_holders[block] = 1
            block_table.append(block)

    def room(self, block_table: list[int]) -> int:
        """Tokens the table could hold if it got every free block."""
        return (len(block_table) + self.free_blocks) * self.kv_block_size

    def trim(self, block_table: list[int], num_tokens: int) -> None:
        """Gives back the blocks at the table's end that `num_tokens` do not need."""
        surplus = block_table[self.blocks_for(num_tokens) :]
        del block_table[len(block_table) - len(surplus) :]
        self.free(surplus)

    def free(self, block_table: list[int]) -> None:
        """Gives all blocks of the table back and empties it, the tail first.

        So a prefix is evicted from its end, and what is left of it can still be found.
        """
        while block_table:
            block = block_table.pop()
            assert self._num_holders[block] > 0, f"block {block} is freed twice"
            self._num_holders[block] -= 1
            if self._num_holders[block]:
                continue
            if self._hashes[block] is None:
                self._blank.append(block)
            else:
                self._idle[block] = None

    def publish(self, block: int, block_hash: bytes) -> None:
        """Makes a held block findable under a hash that says what it contains: it must not be written from now on.

        Where another block is known by that hash already, that one stays and this one remains its holder's own.
        """
        assert self._num_holders[block] > 0, f"block {block} is published while nobody holds it"
        assert self._hashes[block] is None, f"block {block} is published twice"
        if self._by_hash.setdefault(block_hash, block) == block:
            self._hashes[block] = block_hash

    def share(self, block_table: list[int], block_hash: bytes) -> bool:
        """Appends the block published under this hash, held by one more; False, the table unchanged, for none."""
        block = self._by_hash.get(block_hash)
        if block is None:
            return False
        if self._num_holders[block] == 0:
            del self._idle[block]
        self._num_holders[block] += 1
        block_table.append(block)
        return True

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        block_hash = self._hashes[block]
        assert block_hash is not None, f"block {block} is idle but was never published"
        del self._by_hash[block_hash]
        self._hashes[block] = None
        return block
