"""The block manager against lists and sets, under random sequences of calls."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dflash_core.cache.blocks import BlockManager, OutOfBlocks

NUM_BLOCKS, KV_BLOCK_SIZE, NUM_TABLES = 11, 4, 4
tables = st.integers(0, NUM_TABLES - 1)


class Blocks(RuleBasedStateMachine):
    """Tables grow, are published, shared and freed in any order; no block is ever lost, or in two places unshared.

    The model keeps of each block who holds it, its hash, and when it became free.
    """

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(NUM_BLOCKS, KV_BLOCK_SIZE)
        self.tables: list[list[int]] = [[] for _ in range(NUM_TABLES)]
        self.hashes: dict[int, bytes] = {}
        self.freed_at = {block: -block for block in range(NUM_BLOCKS)}  # at first the lowest is the last freed
        self.now = 0

    def holders(self, block: int) -> int:
        return sum(table.count(block) for table in self.tables)

    def next_free(self) -> int:
        """Blank before published; the last freed of those, the first freed of these."""
        free = [block for block in range(NUM_BLOCKS) if not self.holders(block)]
        blank = [block for block in free if block not in self.hashes]
        if blank:
            return max(blank, key=self.freed_at.__getitem__)
        return min(free, key=self.freed_at.__getitem__)

    @rule(which=tables, num_tokens=st.integers(0, 60))
    def extend(self, which: int, num_tokens: int) -> None:
        table = self.tables[which]
        before, free = list(table), self.manager.free_blocks
        missing = max(0, -(-num_tokens // KV_BLOCK_SIZE) - len(before))
        if missing > free:
            assert num_tokens > self.manager.room(table)
            with pytest.raises(OutOfBlocks, match=f"{missing} KV blocks .* {free} are free"):
                self.manager.extend(table, num_tokens)
            assert table == before
            return
        expected = []
        for _ in range(missing):
            expected.append(self.next_free())
            table.append(expected[-1])  # so that the model sees it held
            self.hashes.pop(expected[-1], None)
        del table[len(before) :]
        self.manager.extend(table, num_tokens)
        assert table == [*before, *expected]

    @rule(which=tables)
    def free(self, which: int) -> None:
        tail_first = self.tables[which][::-1]
        self.manager.free(self.tables[which])
        assert self.tables[which] == []
        for block in tail_first:
            if not self.holders(block):
                self.now += 1
                self.freed_at[block] = self.now

    @precondition(lambda self: any(self.tables))
    @rule(data=st.data(), name=st.sampled_from([b"a", b"b", b"c", b"d", b"e", b"f"]))
    def publish(self, data: st.DataObject, name: bytes) -> None:
        block = data.draw(st.sampled_from(sorted({block for table in self.tables for block in table})))
        if block in self.hashes:
            with pytest.raises(AssertionError, match="published twice"):
                self.manager.publish(block, name)
            return
        self.manager.publish(block, name)
        if name not in self.hashes.values():
            self.hashes[block] = name

    @rule(which=tables, name=st.sampled_from([b"a", b"b", b"c", b"d", b"e", b"f"]))
    def share(self, which: int, name: bytes) -> None:
        table = self.tables[which]
        found = [block for block, block_hash in self.hashes.items() if block_hash == name]
        assert len(found) <= 1
        before = list(table)
        assert self.manager.share(table, name) == bool(found)
        assert table == before + found

    @invariant()
    def every_block_is_free_or_held(self) -> None:
        held = {block for table in self.tables for block in table}
        assert all(0 <= block < NUM_BLOCKS for block in held)
        assert self.manager.free_blocks == NUM_BLOCKS - len(held)
        assert self.manager.findable_blocks == len(self.hashes)
        for block in range(NUM_BLOCKS):
            assert self.manager._num_holders[block] == self.holders(block)


TestBlocks = Blocks.TestCase


def test_a_double_free_is_caught() -> None:
    manager = BlockManager(2, KV_BLOCK_SIZE)
    table: list[int] = []
    manager.extend(table, 1)
    copy = list(table)
    manager.free(table)
    with pytest.raises(AssertionError, match="freed twice"):
        manager.free(copy)


def test_what_nobody_holds_cannot_be_published() -> None:
    with pytest.raises(AssertionError, match="nobody holds"):
        BlockManager(2, KV_BLOCK_SIZE).publish(0, b"a")


def test_a_freed_prefix_is_evicted_from_its_end_and_the_last_used_stays_longest() -> None:
    manager = BlockManager(6, KV_BLOCK_SIZE)
    first: list[int] = []
    second: list[int] = []
    for name, table in (("a", first), ("b", second)):
        manager.extend(table, 3 * KV_BLOCK_SIZE)
        for index, block in enumerate(table):
            manager.publish(block, f"{name}{index}".encode())
    manager.free(second)
    manager.free(first)
    found: list[int] = []
    assert manager.share(found, b"b0")  # used once more: now the most recent
    manager.free(found)
    assert (manager.free_blocks, manager.findable_blocks) == (6, 6)
    left = ["a0", "a1", "a2", "b0", "b1", "b2"]
    taken: list[int] = []
    for evicted in ("b2", "b1", "a2", "a1", "a0", "b0"):
        manager.extend(taken, (len(taken) + 1) * KV_BLOCK_SIZE)
        left.remove(evicted)
        assert [name for name in ("a0", "a1", "a2", "b0", "b1", "b2") if name.encode() in manager._by_hash] == left
