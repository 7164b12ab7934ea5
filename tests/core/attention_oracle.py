"""A slow, dense, float64 ragged attention, and random batches to compare with it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dflash_core.attention import RaggedBatch, RowGroup


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
    query, key, value, kv_pages = (x.cpu().double() for x in (query, key, value, kv_pages))
    for s in range(batch.num_sequences):
        start, end, prefix_len = int(batch.cu_rows[s]), int(batch.cu_rows[s + 1]), int(batch.prefix_lens[s])
        prefix = np.arange(prefix_len)
        blocks = torch.from_numpy(batch.block_tables[s, prefix // batch.kv_block_size].astype(np.int64))
        pages = kv_pages[:, blocks, torch.from_numpy(prefix % batch.kv_block_size)]
        keys = torch.cat([pages[0], key[start:end]])
        values = torch.cat([pages[1], value[start:end]])
        positions = np.concatenate([prefix, batch.positions[start:end]])
        for r in range(start, end):
            seen = np.ones(len(positions), np.bool_)
            for k in range(start, end):
                seen[prefix_len + k - start] = batch.first_row[k] <= r < batch.end_row[k]
            if sliding_window is not None:
                seen &= positions > batch.positions[r] - sliding_window
            for head in range(query.shape[1]):
                scores = keys[seen, head // group_size] @ query[r, head] * scale
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                output[r, head] = scores.softmax(0) @ values[seen, head // group_size]
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
    *,
    kv_block_size: int,
    max_prefix_len: int = 13,
) -> RaggedBatch:
    """Sequences of random kinds, of `c`ausal rows, `t`rees and `b`idirectional blocks, over scattered pages."""
    free = rng.permutation(num_blocks).tolist()
    groups = []
    for _ in range(num_sequences):
        num_rows, prefix_len = int(rng.integers(1, max_rows + 1)), int(rng.integers(0, max_prefix_len + 1))
        table = [free.pop() for _ in range(-(-prefix_len // kv_block_size))]
        match rng.choice(list(kinds)):
            case "c":
                groups.append(RowGroup.causal(num_rows, prefix_len, table))
            case "t":
                groups.append(RowGroup.tree(*random_tree(rng, num_rows), prefix_len, table))
            case _:
                groups.append(RowGroup.bidirectional(num_rows, prefix_len, table))
    return RaggedBatch.pack(groups, kv_block_size)


def random_inputs(
    rng: np.random.Generator,
    batch: RaggedBatch,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    num_blocks: int,
) -> list[Tensor]:
    """Query, key, value and pages of fp32 normal numbers."""
    shapes = [
        (batch.num_rows, num_heads, head_dim),
        (batch.num_rows, num_kv_heads, head_dim),
        (batch.num_rows, num_kv_heads, head_dim),
        (2, num_blocks, batch.kv_block_size, num_kv_heads, head_dim),
    ]
    return [torch.from_numpy(rng.standard_normal(shape)).float() for shape in shapes]
