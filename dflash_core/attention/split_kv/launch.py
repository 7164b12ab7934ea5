"""Launches the two attention kernels of one layer."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from dflash_core.attention.split_kv.kernels.attention import attention_kernel
from dflash_core.attention.split_kv.kernels.combine import combine_kernel
from dflash_core.attention.split_kv.tiles import tiles_of

_COMBINED_CELLS = 1024  # heads × padded head_dim of one combining program


def is_interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, for tests (`TRITON_INTERPRET=1` when it was imported)."""
    return not isinstance(attention_kernel, triton.JITFunction)


def launch_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kv_pages: Tensor,
    work: list[Tensor],
    grid: Tensor,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
) -> Tensor:
    """Attention of one layer: `work`, `grid` are `WorkList.tensors`, `GridSize.numbers`, the others `attend`'s."""
    cu_rows, prefix_lens, block_tables, positions, first_row, end_row, items, row_splits, header = work
    tile_rows, num_programs, max_partial_rows, is_causal = grid.tolist()
    assert scale > 0, scale
    interpreted = is_interpreted()
    num_rows, num_heads, head_dim = query.shape
    _, _, kv_block_size, num_kv_heads, _ = kv_pages.shape
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    assert kv_pages.stride(-1) == 1, "the pages' innermost dimension has gaps"

    tiles = tiles_of(tile_rows, head_dim, query.dtype)
    padded_dim = max(16, triton.next_power_of_2(head_dim))
    # The interpreter truncates fp32 to bf16 where hardware rounds: torch does it there.
    output = torch.empty(query.shape, dtype=torch.float32 if interpreted else query.dtype, device=query.device)
    partial_outputs = output.new_empty(max_partial_rows, num_heads, head_dim, dtype=torch.float32)
    partial_lses = output.new_empty(max_partial_rows, num_heads, dtype=torch.float32)
    attention_kernel[(num_programs,)](
        query,
        key,
        value,
        kv_pages,
        cu_rows,
        prefix_lens,
        block_tables,
        positions,
        first_row,
        end_row,
        items,
        row_splits,
        header,
        output,
        partial_outputs,
        partial_lses,
        scale,
        0.0 if softcap is None else softcap,
        0 if sliding_window is None else sliding_window,
        query.stride(0),
        query.stride(1),
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        kv_pages.stride(0),
        kv_pages.stride(1),
        kv_pages.stride(2),
        kv_pages.stride(3),
        block_tables.stride(0),
        num_heads,
        GROUP_SIZE=num_heads // num_kv_heads,
        HEAD_DIM=head_dim,
        PADDED_DIM=padded_dim,
        KV_BLOCK_SIZE=kv_block_size,
        TILE_ROWS=tiles.rows,
        TILE_KEYS=tiles.keys,
        IS_CAUSAL=bool(is_causal),
        HAS_WINDOW=sliding_window is not None,
        HAS_SOFTCAP=softcap is not None,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32",  # says nothing about 16-bit operands
        UPCAST=interpreted,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    combined_heads = min(triton.next_power_of_2(num_heads), max(1, _COMBINED_CELLS // padded_dim))
    combine_kernel[(num_rows, triton.cdiv(num_heads, combined_heads))](
        partial_outputs,
        partial_lses,
        row_splits,
        output,
        num_heads,
        HEAD_DIM=head_dim,
        PADDED_DIM=padded_dim,
        HEADS=combined_heads,
        num_warps=4,
    )
    return output.to(query.dtype)
