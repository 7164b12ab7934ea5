"""Ragged attention on the device: the operators of one layer, and the function that takes a round's batch."""

from __future__ import annotations

import torch
from torch import Tensor

from dflash_core.attention.batch import RaggedBatch
from dflash_core.attention.split_kv.launch import is_interpreted, launch_attention
from dflash_core.attention.split_kv.work_list import HeadShape, WorkList, work_list_of
from dflash_core.errors import InvalidSettings


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
    output: Tensor = attention_op(
        query, key, value, kv_pages, work.tensors, work.grid_numbers, scale, sliding_window, softcap
    )
    return output


@torch.library.custom_op("dflash::split_kv_attention", mutates_args=())
def attention_op(
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
    """`attend`, with its work list taken apart."""
    return launch_attention(query, key, value, kv_pages, work, grid, scale, sliding_window, softcap)


@attention_op.register_fake
def _(
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
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)
