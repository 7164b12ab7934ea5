"""`BlockManager`: which KV blocks are free. Pure bookkeeping; a feature block lives and dies with its KV block."""

from __future__ import annotations

from dflash_core.errors import DFlashError, ErrorCode


class OutOfBlocks(DFlashError):
    """Fewer blocks are free than are needed; nothing was allocated."""

    code = ErrorCode.RESOURCE_EXHAUSTED


class BlockManager:
    """Hands out blocks of `kv_block_size` tokens. A block table is the caller's list, which `extend` lengthens."""

    def __init__(self, num_blocks: int, kv_block_size: int) -> None:
        assert num_blocks > 0, f"num_blocks must be positive, got {num_blocks}"
        assert kv_block_size > 0, f"kv_block_size must be positive, got {kv_block_size}"
        self.num_blocks = num_blocks
        self.kv_block_size = kv_block_size
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: low ids first, then the last freed
        self._is_used = bytearray(num_blocks)

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` fill, the last one perhaps in part."""
        return -(-num_tokens // self.kv_block_size)

    def extend(self, block_table: list[int], num_tokens: int) -> None:
        """Appends blocks until the table holds `num_tokens`. Raises `OutOfBlocks`, the table unchanged."""
        missing = self.blocks_for(num_tokens) - len(block_table)
        if missing <= 0:
            return
        if missing > len(self._free):
            raise OutOfBlocks(f"{missing} KV blocks are needed for {num_tokens} tokens, {len(self._free)} are free")
        for _ in range(missing):
            block = self._free.pop()
            self._is_used[block] = 1
            block_table.append(block)

    def room(self, block_table: list[int]) -> int:
        """Tokens the table could hold if it got every free block."""
        return (len(block_table) + len(self._free)) * self.kv_block_size

    def trim(self, block_table: list[int], num_tokens: int) -> None:
        """Gives back the blocks at the table's end that `num_tokens` do not need."""
        surplus = block_table[self.blocks_for(num_tokens) :]
        del block_table[len(block_table) - len(surplus) :]
        self.free(surplus)

    def free(self, block_table: list[int]) -> None:
        """Gives all blocks of the table back and empties it."""
        while block_table:
            block = block_table.pop()
            assert self._is_used[block], f"block {block} is freed twice"
            self._is_used[block] = 0
            self._free.append(block)
