"""Gathering keys and values for dense attention on the CPU in fp32: one pass in place of a dozen torch calls."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dflash_core.attention.batch import Int32s, RaggedBatch
from dflash_core.jit import jit

Floats = npt.NDArray[np.float32]
Longs = npt.NDArray[np.int64]


def gather(
    key: Tensor, value: Tensor, kv_pages: Tensor, batch: RaggedBatch, sequences: list[int], max_keys: int
) -> tuple[Tensor, Tensor]:
    """Keys and values `[len(sequences), num_kv_heads, max_keys, head_dim]`: a sequence's prefix, its in-flight rows,
    then zeros. Arguments as in `ragged_attention`, all of the batch's rows."""
    _, num_kv_heads, head_dim = key.shape
    gathered = torch.empty(2, len(sequences), num_kv_heads, max_keys, head_dim)
    _gather(
        key.contiguous().numpy(),
        value.contiguous().numpy(),
        kv_pages.numpy(),
        np.array(sequences),
        batch.cu_rows,
        batch.prefix_lens,
        batch.block_tables,
        gathered.numpy(),
    )
    keys, values = gathered.unbind(0)
    return keys, values


@jit
def _gather(
    key: Floats,  # [num_rows, num_kv_heads, head_dim]
    value: Floats,
    kv_pages: Floats,  # [2, num_blocks, kv_block_size, num_kv_heads, head_dim]
    sequences: Longs,
    cu_rows: Int32s,
    prefix_lens: Int32s,
    block_tables: Int32s,
    gathered: Floats,  # [2, len(sequences), num_kv_heads, max_keys, head_dim]
) -> None:
    _, _, num_kv_heads, max_keys, head_dim = gathered.shape
    kv_block_size = kv_pages.shape[2]
    for i in range(len(sequences)):
        sequence = sequences[i]
        prefix_len = prefix_lens[sequence]
        first_row = cu_rows[sequence]
        num_rows = cu_rows[sequence + 1] - first_row
        for kind in range(2):
            rows = key if kind == 0 else value
            for start in range(0, prefix_len, kv_block_size):
                page = kv_pages[kind, block_tables[sequence, start // kv_block_size]]
                for offset in range(min(kv_block_size, prefix_len - start)):
                    for head in range(num_kv_heads):
                        for j in range(head_dim):
                            gathered[kind, i, head, start + offset, j] = page[offset, head, j]
            for row in range(num_rows):
                for head in range(num_kv_heads):
                    for j in range(head_dim):
                        gathered[kind, i, head, prefix_len + row, j] = rows[first_row + row, head, j]
            gathered[kind, i, :, prefix_len + num_rows : max_keys] = 0.0
