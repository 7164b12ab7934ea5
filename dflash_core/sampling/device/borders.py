"""The first two launches of both operators: every row's best id, and the border of its top-k and top-p."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from dflash_core.sampling.device.kernels.borders import STATE_SIZE, border_kernel
from dflash_core.sampling.device.kernels.tiles import tile_best_kernel

TILE = 256  # ids
TILES_TOGETHER = 16  # of one program
KEYS_HELD = 2048  # of one row in registers, for the last steps to its border
MOST_IDS = 2**19  # of which the fixed-point masses of a row stay inside an int64


@dataclass(frozen=True, slots=True)
class Borders:
    """What both kernels found; meaningless in rows that were left alone."""

    tile_best: Tensor  # int64 [rows, num_tiles], the best key of every tile of logits / T
    state: Tensor  # int64 [rows, STATE_SIZE]: best key, border key, and two numbers for `choose_kernel` to work on


def find_borders(
    logits: Tensor,  # any float dtype [rows, width], the last dimension without gaps
    temperature: Tensor,  # fp32 [rows]
    top_k: Tensor,  # int32 [rows]
    top_p: Tensor,  # fp32 [rows]
    min_p: Tensor,  # fp32 [rows]
    vocab_size: int,
    *,
    truncated_only: bool,
) -> Borders:
    """Launches both kernels; with `truncated_only` they leave rows without top-k, top-p and min-p alone."""
    assert 0 < vocab_size <= min(MOST_IDS, logits.shape[1]), (vocab_size, logits.shape)
    num_rows, num_tiles = len(logits), triton.cdiv(vocab_size, TILE)
    tile_best = torch.empty(num_rows, num_tiles, dtype=torch.int64, device=logits.device)
    tile_sums = torch.empty(num_rows, num_tiles, dtype=torch.float32, device=logits.device)
    listed_tiles = torch.empty(num_rows, num_tiles, dtype=torch.int32, device=logits.device)
    listed_keys = torch.empty(num_rows, KEYS_HELD, dtype=torch.int64, device=logits.device)
    state = torch.empty(num_rows, STATE_SIZE.value, dtype=torch.int64, device=logits.device)
    # Rows vary fastest in both kernels of a grid: those that run together have the same part of the vocabulary.
    tile_best_kernel[(num_rows, triton.cdiv(num_tiles, TILES_TOGETHER))](
        logits,
        temperature,
        top_k,
        top_p,
        min_p,
        tile_best,
        tile_sums,
        logits.stride(0),
        vocab_size,
        logits.shape[1],
        num_tiles,
        TILE=TILE,
        TILES_TOGETHER=TILES_TOGETHER,
        TRUNCATED_ONLY=truncated_only,
        num_warps=8,
        enable_fp_fusion=False,
    )
    border_kernel[(num_rows,)](
        logits,
        temperature,
        top_k,
        top_p,
        tile_best,
        tile_sums,
        listed_tiles,
        listed_keys,
        state,
        logits.stride(0),
        vocab_size,
        num_tiles,
        TILE=TILE,
        TILES=triton.next_power_of_2(num_tiles),
        TILES_TOGETHER=TILES_TOGETHER,
        KEYS_HELD=KEYS_HELD,
        num_warps=16,
        enable_fp_fusion=False,
    )
    return Borders(tile_best, state)
