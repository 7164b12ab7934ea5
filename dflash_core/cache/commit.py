"""The commit of accepted tree rows on a GPU, as an operator that compilers and CUDA graphs take."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from dflash_core.cache.kernels.commit import commit_kernel

_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32}  # numbers are moved as they are, whatever they mean
_MAX_WORDS_TOGETHER = 2048


@torch.library.custom_op("dflash::commit_rows", mutates_args=("slots_of_pages",))
def commit_rows(staging: Tensor, slots_of_pages: Tensor, tree_rows: Tensor, slots: Tensor) -> None:
    """Copies rows of the staging buffer to slots of the pages, in all layers.

    Args:
        staging: `[num_layers, 2, max_tree_rows, num_kv_heads, head_dim]`, contiguous.
        slots_of_pages: `[num_layers, 2, num_slots, num_kv_heads, head_dim]`, contiguous.
        tree_rows: int32 or int64 `[n]`.
        slots: likewise, distinct; negative where there is nothing to commit, so that `n` may be a padded size.
    """
    assert staging.is_contiguous()
    assert slots_of_pages.is_contiguous()
    num_layers, kinds, _, num_kv_heads, head_dim = staging.shape
    if not len(slots):
        return
    words = _WORDS[staging.element_size()]
    token_words = num_kv_heads * head_dim
    commit_kernel[(len(slots), num_layers * kinds)](
        staging.view(words),
        slots_of_pages.view(words),
        tree_rows,
        slots,
        staging.stride(1),
        slots_of_pages.stride(1),
        TOKEN_WORDS=token_words,
        WORDS=min(triton.next_power_of_2(token_words), _MAX_WORDS_TOGETHER),
        num_warps=4,
    )


@commit_rows.register_fake
def _(staging: Tensor, slots_of_pages: Tensor, tree_rows: Tensor, slots: Tensor) -> None:
    return None
