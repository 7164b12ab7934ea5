"""Ragged attention against a dense float64 double loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dflash_core.attention import RaggedBatch, RowGroup, ragged_attention
from dflash_core.attention.padding import padded_groups

KV_BLOCK_SIZE = 4
HEAD_DIM = 8


def dense_oracle(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kv_pages: Tensor,
    batch: RaggedBatch,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
) -> Tensor:
    """One row and one head at a time, in float64, straight from the rules of ARCHITECTURE section 4."""
    output = torch.zeros(query.shape, dtype=torch.float64)
    group_size = query.shape[1] // key.shape[1]
    for s in range(batch.num_sequences):
        start, end, prefix_len = (
            int(batch.cu_rows[s]),
            int(batch.cu_rows[s + 1]),
            int(batch.prefix_lens[s]),
        )
        for r in range(start, end):
            seen: list[tuple[Tensor, Tensor]] = []
            for position in range(prefix_len):
                block, offset = (
                    batch.block_tables[s, position // KV_BLOCK_SIZE],
                    position % KV_BLOCK_SIZE,
                )
                if sliding_window is None or position > batch.positions[r] - sliding_window:
                    seen.append((kv_pages[0, block, offset], kv_pages[1, block, offset]))
            for k in range(start, end):
                near = sliding_window is None or batch.positions[k] > batch.positions[r] - sliding_window
                if batch.first_row[k] <= r < batch.end_row[k] and near:
                    seen.append((key[k], value[k]))
            for head in range(query.shape[1]):
                keys = torch.stack([k[head // group_size] for k, _ in seen]).double()
                values = torch.stack([v[head // group_size] for _, v in seen]).double()
                scores = keys @ query[r, head].double() * scale
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                output[r, head] = scores.softmax(0) @ values
    return output


def random_tree(rng: np.random.Generator, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Depths and end rows of a random tree in preorder."""
    depths = np.zeros(num_rows, np.int32)
    for k in range(1, num_rows):
        depths[k] = rng.integers(1, depths[k - 1] + 2)
    ends = [next((j for j in range(k + 1, num_rows) if depths[j] <= depths[k]), num_rows) for k in range(num_rows)]
    return depths, np.array(ends, np.int32)


def random_batch(
    rng: np.random.Generator,
    num_sequences: int,
    kinds: str,
    max_rows: int,
    num_blocks: int,
) -> RaggedBatch:
    free = rng.permutation(num_blocks).tolist()
    groups = []
    for _ in range(num_sequences):
        num_rows, prefix_len = (
            int(rng.integers(1, max_rows + 1)),
            int(rng.integers(0, 14)),
        )
        table = [free.pop() for _ in range(-(-prefix_len // KV_BLOCK_SIZE))]
        match rng.choice(list(kinds)):
            case "c":
                groups.append(RowGroup.causal(num_rows, prefix_len, table))
            case "t":
                groups.append(RowGroup.tree(*random_tree(rng, num_rows), prefix_len, table))
            case _:
                groups.append(RowGroup.bidirectional(num_rows, prefix_len, table))
    return RaggedBatch.pack(groups, KV_BLOCK_SIZE)


def random_inputs(rng: np.random.Generator, batch: RaggedBatch, num_heads: int, num_kv_heads: int) -> list[Tensor]:
    shapes = [
        (batch.num_rows, num_heads, HEAD_DIM),
        (batch.num_rows, num_kv_heads, HEAD_DIM),
        (batch.num_rows, num_kv_heads, HEAD_DIM),
        (2, 64, KV_BLOCK_SIZE, num_kv_heads, HEAD_DIM),
    ]
    return [torch.from_numpy(rng.standard_normal(shape)).float() for shape in shapes]


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
        batch = random_batch(rng, num_sequences, "ctb", max_rows, num_blocks=64)
        inputs = random_inputs(rng, batch, num_heads, num_kv_heads)
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
    inputs = random_inputs(rng, batch, 4, 2)
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


def test_a_sequence_is_untouched_by_what_stands_in_others_pages_and_rows() -> None:
    rng = np.random.default_rng(6)
    groups = [RowGroup.causal(3, 6, [0, 1]), RowGroup.causal(5, 3, [2])]
    batch = RaggedBatch.pack(groups, KV_BLOCK_SIZE)
    query, key, value, kv_pages = random_inputs(rng, batch, 4, 2)
    clean = ragged_attention(query, key, value, kv_pages, batch, scale=0.3)
    kv_pages[:, :2] = float("nan")
    key[:3] = value[:3] = float("nan")
    dirty = ragged_attention(query, key, value, kv_pages, replace(batch), scale=0.3)
    assert torch.equal(clean[3:], dirty[3:])
