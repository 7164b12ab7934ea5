"""Writing a round's rows on a GPU, in ways that CUDA graphs take.

Slots are on the device and may be negative: so a padded row, or one that was not accepted, is written nowhere, and no
shape depends on what the round holds.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from dflash_core.cache.kernels.store import scatter_kernel, store_kernel

_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32}  # numbers are moved as they are, whatever they mean
_WORDS_TOGETHER = 1024


def store_rows(
    key: Tensor, value: Tensor, pages: Tensor, staging: Tensor, page_slots: Tensor, staged_rows: Tensor
) -> None:
    """Puts a layer's keys and values into its pages or into its part of the staging buffer.

    Args:
        key, value: `[num_rows, num_kv_heads, head_dim]`, the last dimension without gaps.
        pages: `[2, num_blocks, kv_block_size, num_kv_heads, head_dim]`, the last three dimensions without gaps.
        staging: `[2, max_tree_rows, num_kv_heads, head_dim]`, likewise.
        page_slots: int32 `[num_rows]`; negative for rows that do not go to pages.
        staged_rows: int32 `[num_rows]`; where those go in the staging buffer, negative for nowhere.
    """
    assert pages[0].is_contiguous()
    assert staging[0].is_contiguous()
    num_rows, num_kv_heads, head_dim = key.shape
    words = _WORDS[key.element_size()]
    key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (key, value))
    store_kernel[(num_rows, 2)](
        key.view(words),
        value.view(words),
        pages.view(words),
        staging.view(words),
        page_slots,
        staged_rows,
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        pages.stride(0),
        staging.stride(0),
        num_kv_heads,
        HEAD_DIM=head_dim,
        PADDED_DIM=triton.next_power_of_2(head_dim),
        PADDED_HEADS=triton.next_power_of_2(num_kv_heads),
        num_warps=4,
    )


@torch.library.custom_op("dflash::scatter_rows", mutates_args=("destination",))
def scatter_rows(rows: Tensor, slots: Tensor, destination: Tensor) -> None:
    """Writes `rows [num_rows, width]` to `destination [num_slots, width]` at `slots [num_rows]` (int32), distinct but
    for negative ones, whose rows go nowhere."""
    assert destination.is_contiguous()
    assert rows.stride(-1) == 1
    num_rows, width = rows.shape
    words = _WORDS[rows.element_size()]
    together = min(triton.next_power_of_2(width), _WORDS_TOGETHER)
    scatter_kernel[(num_rows, triton.cdiv(width, together))](
        rows.view(words), slots, destination.view(words), rows.stride(0), WIDTH=width, WORDS=together, num_warps=4
    )


@scatter_rows.register_fake
def _(rows: Tensor, slots: Tensor, destination: Tensor) -> None:
    return None
