"""`DeviceStep`: one forward whose rows find their own way on the device, for compilers and CUDA graphs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dflash_core.attention.split_kv.launch import launch_attention
from dflash_core.attention.split_kv.work_list import WorkList
from dflash_core.cache.store import store_rows


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """Implements `AttentionStep`. Everything in it is on the device, of a padded size."""

    work: WorkList
    pages: Tensor  # [num_layers, 2, num_blocks, kv_block_size, num_kv_heads, head_dim]
    staging: Tensor  # [num_layers, 2, max_tree_rows, num_kv_heads, head_dim]
    page_slots: Tensor  # int32 [num_rows] of prefill rows; −1 for all others
    staged_rows: Tensor  # int32 [num_rows] of tree rows; −1 for all others

    def attend(
        self,
        layer_idx: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        sliding_window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        output: Tensor = attend_and_store_op(
            query,
            key,
            value,
            self.pages,
            self.staging,
            layer_idx,
            self.page_slots,
            self.staged_rows,
            self.work.tensors,
            self.work.grid_numbers,
            scale,
            sliding_window,
            softcap,
        )
        return output


@torch.library.custom_op("dflash::attend_and_store", mutates_args=("pages", "staging"))
def attend_and_store_op(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pages: Tensor,
    staging: Tensor,
    layer_idx: int,
    page_slots: Tensor,
    staged_rows: Tensor,
    work: list[Tensor],
    grid: Tensor,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
) -> Tensor:
    """A layer's attention, and then its rows' keys and values to where they belong.

    One operator, which takes the whole pool and the layer's number: were reading and writing two, a compiler would see
    them change places and copy the pool to be safe (inductor of torch 2.13 does, once a layer).
    """
    output = launch_attention(query, key, value, pages[layer_idx], work, grid, scale, sliding_window, softcap)
    store_rows(key, value, pages[layer_idx], staging[layer_idx], page_slots, staged_rows)
    return output


@attend_and_store_op.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pages: Tensor,
    staging: Tensor,
    layer_idx: int,
    page_slots: Tensor,
    staged_rows: Tensor,
    work: list[Tensor],
    grid: Tensor,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
) -> Tensor:
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)
