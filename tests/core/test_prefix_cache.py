"""Which blocks a sequence finds, against a set of all prefixes ever computed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dflash_core.cache.blocks import BlockManager
from dflash_core.cache.prefix import PrefixCache

KV_BLOCK_SIZE = 3
prompts = st.lists(st.integers(0, 1), min_size=1, max_size=12)  # two tokens: prefixes meet often


@given(st.lists(prompts, max_size=12))
@settings(max_examples=60)
def test_hits_are_the_longest_common_prefix_of_full_blocks(sequences: list[list[int]]) -> None:
    """The oracle compares tokens with those of every sequence before, which hashes must not be able to do better."""
    blocks = BlockManager(200, KV_BLOCK_SIZE)
    cache = PrefixCache(blocks, "weights", "fc")
    contents: dict[int, tuple[int, ...]] = {}  # of each block: the tokens up to its end
    for tokens in sequences:
        table: list[int] = []
        chain = cache.take(table, np.asarray(tokens, np.int32))
        known = set(contents.values())
        expected = 0
        while (end := (expected + 1) * KV_BLOCK_SIZE) < len(tokens) and tuple(tokens[:end]) in known:
            expected += 1
        assert len(table) == chain.num_blocks == expected
        for index, block in enumerate(table):
            assert contents[block] == tuple(tokens[: (index + 1) * KV_BLOCK_SIZE])
        blocks.extend(table, len(tokens))
        for step in range(1, len(tokens) + 1):  # published as the tokens come, one at a time
            cache.publish(table, tokens[:step], chain)
        for end in range(KV_BLOCK_SIZE, len(tokens) + 1, KV_BLOCK_SIZE):
            if tuple(tokens[:end]) not in known:
                contents[table[end // KV_BLOCK_SIZE - 1]] = tuple(tokens[:end])
        assert blocks.findable_blocks == len(contents) == len(set(contents.values()))


@given(st.lists(prompts, min_size=2, max_size=6), st.lists(st.sampled_from([("a",), ("b",), ("a", "b"), ("ab",)])))
def test_hashes_are_equal_exactly_where_tokens_and_salts_are(
    sequences: list[list[int]], salts: list[tuple[str, ...]]
) -> None:
    """The chained hash of block i stands for the salt and all tokens up to the block's end, and for nothing else."""
    contents: dict[bytes, tuple[object, ...]] = {}
    for salt in [*salts, ("a",)]:
        for tokens in sequences:
            blocks = BlockManager(8, KV_BLOCK_SIZE)
            cache, table = PrefixCache(blocks, *salt), list[int]()
            chain = cache.take(table, np.asarray(tokens, np.int32))
            blocks.extend(table, len(tokens))
            for end in range(KV_BLOCK_SIZE, len(tokens) + 1, KV_BLOCK_SIZE):
                cache.publish(table, tokens[:end], chain)
                assert contents.setdefault(chain.last_hash, (salt, *tokens[:end])) == (salt, *tokens[:end])
                assert len(chain.last_hash) == 16
    assert len(set(contents.values())) == len(contents)


@pytest.mark.parametrize("other", [["weights", "fc2"], ["weights2", "fc"], ["weightsf", "c"], ["weights"]])
def test_another_salt_finds_nothing(other: list[str]) -> None:
    blocks = BlockManager(8, KV_BLOCK_SIZE)
    tokens = list(range(7))
    cache, table = PrefixCache(blocks, "weights", "fc"), list[int]()
    chain = cache.take(table, np.asarray(tokens, np.int32))
    blocks.extend(table, len(tokens))
    cache.publish(table, tokens, chain)
    assert PrefixCache(blocks, *other).take([], np.asarray(tokens, np.int32)).num_blocks == 0
    assert PrefixCache(blocks, "weights", "fc").take([], np.asarray(tokens, np.int32)).num_blocks == 2


def test_a_lost_block_hides_what_follows_until_it_is_computed_again() -> None:
    blocks = BlockManager(4, KV_BLOCK_SIZE)
    cache, table = PrefixCache(blocks), list[int]()
    tokens = np.arange(10, dtype=np.int32)
    chain = cache.take(table, tokens)
    blocks.extend(table, 10)
    cache.publish(table, tokens.tolist(), chain)
    middle = table.pop(1)
    blocks.free([middle])
    other: list[int] = []
    blocks.extend(other, 1)  # evicts the middle block
    assert other == [middle]
    found: list[int] = []
    chain = cache.take(found, tokens)
    assert found == table[:1]
    blocks.free(other)
    blocks.extend(found, 6)
    cache.publish(found, tokens[:6].tolist(), chain)
    again: list[int] = []
    assert cache.take(again, tokens).num_blocks == 3
    assert again == [table[0], found[1], table[1]]
