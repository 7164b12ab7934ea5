"""`dflash::choose_tokens`: the next token of every row, on the device."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from dflash_core.sampling.device.borders import TILE, TILES_TOGETHER, find_borders
from dflash_core.sampling.device.kernels.choose import choose_kernel


@torch.library.custom_op("dflash::choose_tokens", mutates_args=())
def choose_tokens_op(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    vocab_size: int,
) -> Tensor:
    """`dflash_core.sampling.choose.choose_tokens` of tensors alone; int64 `[rows]`.

    Its exponentials are not the CPU's to the last bit: the two may keep another last id where the mass up to it lies
    within about 1e-6 of top_p.

    Args:
        logits: any float dtype, `[rows, width]`.
        temperature, top_k, top_p, min_p, seeds, positions: `[rows]` as in `SamplingRows`.
    """
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    if not len(logits):
        return tokens
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    borders = find_borders(logits, temperature, top_k, top_p, min_p, vocab_size, truncated_only=False)
    num_tiles = borders.tile_best.shape[1]
    choose_kernel[(len(logits), triton.cdiv(num_tiles, TILES_TOGETHER))](
        logits,
        temperature,
        min_p,
        seeds,
        positions,
        borders.tile_best,
        borders.state,
        tokens,
        logits.stride(0),
        vocab_size,
        num_tiles,
        TILE=TILE,
        TILES_TOGETHER=TILES_TOGETHER,
        num_warps=4,
        # Where a product ends and a sum begins must not depend on how a kernel was compiled.
        enable_fp_fusion=False,
    )
    return tokens


@choose_tokens_op.register_fake
def _(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    vocab_size: int,
) -> Tensor:
    return torch.empty(len(logits), dtype=torch.int64, device=logits.device)
