"""Ragged attention with torch's operators, against a dense float64 loop."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from dflash_core.attention import AttentionBackend, RaggedBatch, RowGroup, ragged_attention
from dflash_core.attention.backend import picks_triton
from dflash_core.attention.padding import CALL_CELLS, padded_groups
from dflash_core.errors import InvalidSettings
from tests.core.attention_oracle import dense_oracle, random_batch, random_inputs

KV_BLOCK_SIZE = 4
HEAD_DIM = 8
NUM_BLOCKS = 64


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("sliding_window", [None, 1, 5])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(6, 2), (4, 4), (3, 1)])
@pytest.mark.parametrize("num_sequences", [1, 2, 7])
def test_equals_dense_float64(
    num_sequences: int,
    num_heads: int,
    num_kv_heads: int,
    sliding_window: int | None,
    softcap: float | None,
) -> None:
    rng = np.random.default_rng([num_sequences, num_heads, sliding_window or 0])
    for max_rows in (1, 9):
        batch = random_batch(rng, num_sequences, "ctb", max_rows, NUM_BLOCKS, kv_block_size=KV_BLOCK_SIZE)
        inputs = random_inputs(rng, batch, num_heads, num_kv_heads, HEAD_DIM, NUM_BLOCKS)
        got = ragged_attention(*inputs, batch, scale=0.3, sliding_window=sliding_window, softcap=softcap)
        expected = dense_oracle(*inputs, batch, 0.3, sliding_window, softcap)
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


def test_very_uneven_sequences_are_split_into_groups() -> None:
    rng = np.random.default_rng(5)
    groups = [
        RowGroup.causal(200, 0, []),
        *(RowGroup.causal(1, 9, [3 * i, 3 * i + 1, 3 * i + 2]) for i in range(6)),
    ]
    batch = RaggedBatch.pack(groups, KV_BLOCK_SIZE)
    inputs = random_inputs(rng, batch, 4, 2, HEAD_DIM, NUM_BLOCKS)
    got = ragged_attention(*inputs, batch, scale=0.3)
    assert [group.sequences for group in padded_groups(batch)] == [
        [0],
        [1, 2, 3, 4, 5, 6],
    ]
    torch.testing.assert_close(
        got.double(),
        dense_oracle(*inputs, batch, 0.3, None, None),
        rtol=1e-5,
        atol=1e-6,
    )


def test_single_rows_have_a_call_of_their_own_beside_trees_and_a_few_have_not() -> None:
    def groups_of(num_roots: int, num_trees: int) -> list[int]:
        groups = [RowGroup.causal(1, 150, np.arange(38))] * num_roots + [
            RowGroup.causal(7, 150, np.arange(38))
        ] * num_trees
        return [group.num_sequences for group in padded_groups(RaggedBatch.pack(groups, KV_BLOCK_SIZE))]

    assert groups_of(24, 8) == [8, 24]
    assert groups_of(2, 8) == [10]


@pytest.mark.parametrize("seed", range(20))
def test_no_other_way_to_part_sequences_in_the_order_of_their_rows_costs_less(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num = int(rng.integers(2, 9))
    num_rows, prefix_lens = rng.integers(1, 30, num), rng.integers(0, 200, num)
    groups = [
        RowGroup.causal(int(rows), int(prefix_len), np.arange(50))
        for rows, prefix_len in zip(num_rows, prefix_lens, strict=True)
    ]
    found = [group.sequences for group in padded_groups(RaggedBatch.pack(groups, KV_BLOCK_SIZE))]
    assert sorted(sequence for group in found for sequence in group) == list(range(num))

    def cost(parts: list[list[int]]) -> int:
        return sum(
            CALL_CELLS + len(part) * int(num_rows[part].max()) * int((num_rows + prefix_lens)[part].max())
            for part in parts
        )

    order = sorted(range(num), key=lambda s: (-num_rows[s], -(num_rows + prefix_lens)[s]))
    every = (
        [order[begin:end] for begin, end in pairwise((0, *cuts, num))]
        for count in range(num)
        for cuts in combinations(range(1, num), count)
    )
    assert cost(found) == min(map(cost, every))


def test_a_sequence_is_untouched_by_what_stands_in_others_pages_and_rows() -> None:
    rng = np.random.default_rng(6)
    groups = [RowGroup.causal(3, 6, [0, 1]), RowGroup.causal(5, 3, [2])]
    batch = RaggedBatch.pack(groups, KV_BLOCK_SIZE)
    query, key, value, kv_pages = random_inputs(rng, batch, 4, 2, HEAD_DIM, NUM_BLOCKS)
    clean = ragged_attention(query, key, value, kv_pages, batch, scale=0.3)
    kv_pages[:, :2] = float("nan")
    key[:3] = value[:3] = float("nan")
    dirty = ragged_attention(query, key, value, kv_pages, replace(batch), scale=0.3)
    assert torch.equal(clean[3:], dirty[3:])


def test_the_backend_follows_the_device_unless_forced() -> None:
    picked = {
        (backend.value, device): picks_triton(backend, torch.device(device))
        for backend in AttentionBackend
        for device in ("cpu", "cuda")
    }
    assert picked == {
        ("auto", "cpu"): False,
        ("auto", "cuda"): True,
        ("torch", "cpu"): False,
        ("torch", "cuda"): False,
        ("triton", "cpu"): True,
        ("triton", "cuda"): True,
    }


def test_triton_on_a_cpu_is_refused() -> None:
    batch = RaggedBatch.pack([RowGroup.causal(3, 6, [0, 1])], KV_BLOCK_SIZE)
    inputs = random_inputs(np.random.default_rng(7), batch, 4, 2, HEAD_DIM, NUM_BLOCKS)
    with pytest.raises(InvalidSettings, match="runs on cuda"):
        ragged_attention(*inputs, batch, scale=0.3, backend=AttentionBackend.TRITON)
