"""The block manager against a set, under random sequences of calls."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dflash_core.cache.blocks import BlockManager, OutOfBlocks

NUM_BLOCKS, KV_BLOCK_SIZE = 11, 4


class Blocks(RuleBasedStateMachine):
    """Tables grow and are freed in any order; no block is ever in two places or lost."""

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(NUM_BLOCKS, KV_BLOCK_SIZE)
        self.tables: list[list[int]] = [[] for _ in range(4)]

    @rule(which=st.integers(0, 3), num_tokens=st.integers(0, 60))
    def extend(self, which: int, num_tokens: int) -> None:
        table = self.tables[which]
        before, free = list(table), self.manager.free_blocks
        needed = max(len(before), -(-num_tokens // KV_BLOCK_SIZE))
        if needed - len(before) > free:
            assert num_tokens > self.manager.room(table)
            with pytest.raises(OutOfBlocks, match=f"{needed - len(before)} KV blocks .* {free} are free"):
                self.manager.extend(table, num_tokens)
            assert table == before
        else:
            self.manager.extend(table, num_tokens)
            assert len(table) == needed
            assert table[: len(before)] == before

    @rule(which=st.integers(0, 3))
    def free(self, which: int) -> None:
        self.manager.free(self.tables[which])
        assert self.tables[which] == []

    @invariant()
    def every_block_is_in_one_place(self) -> None:
        used = [block for table in self.tables for block in table]
        assert len(set(used)) == len(used)
        assert all(0 <= block < NUM_BLOCKS for block in used)
        assert self.manager.free_blocks == NUM_BLOCKS - len(used)


TestBlocks = Blocks.TestCase


def test_a_double_free_is_caught() -> None:
    manager = BlockManager(2, KV_BLOCK_SIZE)
    table: list[int] = []
    manager.extend(table, 1)
    copy = list(table)
    manager.free(table)
    with pytest.raises(AssertionError, match="freed twice"):
        manager.free(copy)
