"""Ragged attention on the device: the custom op of one layer, and the function that takes a round's batch."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from dflash_core.attention.batch import RaggedBatch
from dflash_core.attention.split_kv.kernels.attention import attention_kernel
from dflash_core.attention.split_kv.kernels.combine import combine_kernel
from dflash_core.attention.split_kv.tiles import tiles_of
from dflash_core.attention.split_kv.work_list import HeadShape, WorkList, work_list_of
from dflash_core.errors import InvalidSettings

_COMBINED_CELLS = 1024  # heads × padded head_dim of one combining program


def split_kv_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kv_pages: Tensor,
    batch: RaggedBatch,
    *,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """`ragged_attention` in Triton. The batch's first layer makes the work list for all layers of its head shape.

    Raises `InvalidSettings` where the tensors are not on a GPU.
    """
    if query.device.type != "cuda" and not is_interpreted():
        raise InvalidSettings(f"attention is triton, which runs on cuda, but the model is on {query.device}")
    _, num_heads, head_dim = query.shape
    heads = HeadShape(num_heads, key.shape[1], head_dim, query.dtype)
    work = batch.work_lists.get(heads)
    if work is None:
        work = batch.work_lists[heads] = work_list_of(batch, heads, query.device)
    return attend(query, key, value, kv_pages, work, scale=scale, sliding_window=sliding_window, softcap=softcap)


def attend(
    query: Tensor,  # [num_rows, num_heads, head_dim]
    key: Tensor,  # [num_rows, num_kv_heads, head_dim]
    value: Tensor,
    kv_pages: Tensor,  # [2, num_blocks, kv_block_size, num_kv_heads, head_dim]
    work: WorkList,
    *,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of one layer over a work list; `[num_rows, num_heads, head_dim]`, zeros in rows of no sequence."""
    batch, grid = work.batch, work.grid
    output: Tensor = attention_op(
        query,
        key,
        value,
        kv_pages,
        batch.cu_rows,
        batch.prefix_lens,
        batch.block_tables,
        batch.positions,
        batch.first_row,
        batch.end_row,
        work.items,
        work.row_splits,
        work.header,
        grid.tile_rows,
        grid.num_programs,
        grid.max_partial_rows,
        grid.is_causal,
        scale,
        sliding_window,
        softcap,
    )
    return output


def is_interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, for tests (`TRITON_INTERPRET=1` when it was imported)."""
    return not isinstance(attention_kernel, triton.JITFunction)


@torch.library.custom_op("dflash::split_kv_attention", mutates_args=())
def attention_op(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kv_pages: Tensor,
    cu_rows: Tensor,
    prefix_lens: Tensor,
    block_tables: Tensor,
    positions: Tensor,
    first_row: Tensor,
    end_row: Tensor,
    items: Tensor,
    row_splits: Tensor,
    header: Tensor,
    tile_rows: int,
    num_programs: int,
    max_partial_rows: int,
    is_causal: bool,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
) -> Tensor:
    """Both kernels of a layer. The arguments are those of `attend`, with its work list taken apart."""
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
        IS_CAUSAL=is_causal,
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


@attention_op.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kv_pages: Tensor,
    cu_rows: Tensor,
    prefix_lens: Tensor,
    block_tables: Tensor,
    positions: Tensor,
    first_row: Tensor,
    end_row: Tensor,
    items: Tensor,
    row_splits: Tensor,
    header: Tensor,
    tile_rows: int,
    num_programs: int,
    max_partial_rows: int,
    is_causal: bool,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
) -> Tensor:
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)
