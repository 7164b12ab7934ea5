"""`dflash::rank_candidates`: the drafter's likeliest tokens of every row, on the device."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from dflash_core.errors import InvalidSettings
from dflash_core.sampling.device.borders import find_borders
from dflash_core.sampling.device.kernels.rank import rank_rows_kernel, rank_tiles_kernel

MOST_CANDIDATES = 512
PART = 2048  # ids scored by one program; fixed, so that the order of sums is
_IDS_HELD = 8192  # of one row in registers: as many tiles as candidates


def tile_size(num_candidates: int) -> int:
    """Ids per tile: all tiles that can hold the best `num_candidates` are scored again, so the more the smaller."""
    return min(512, _IDS_HELD // int(triton.next_power_of_2(num_candidates)))


@torch.library.custom_op("dflash::rank_candidates", mutates_args=())
def rank_candidates_op(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    noise_scale: Tensor,
    truncation_penalty: Tensor,
    vocab_size: int,
    num_candidates: int,
    sharpness: float,
) -> tuple[Tensor, Tensor]:
    """`dflash_core.sampling.candidates.rank_candidates` of tensors alone; int32 and fp32 `[rows, num_candidates]`.

    Which ids bear the penalty of truncation is decided as in `choose_tokens_op`. Raises `InvalidSettings` beyond
    `MOST_CANDIDATES`.

    Args:
        logits: any float dtype, `[rows, width]`.
        temperature, top_k, top_p, min_p, seeds, positions: `[rows]` as in `SamplingRows`.
        noise_scale, truncation_penalty: `[rows]` as in `RankingRows`.
    """
    if num_candidates > MOST_CANDIDATES:
        raise InvalidSettings(f"num_candidates is {num_candidates}, but on a GPU at most {MOST_CANDIDATES}")
    assert 0 < num_candidates <= vocab_size, (num_candidates, vocab_size)
    assert sharpness > 0.0, sharpness
    num_rows, device = len(logits), logits.device
    ids = torch.empty(num_rows, num_candidates, dtype=torch.int32, device=device)
    scores = torch.empty(num_rows, num_candidates, dtype=torch.float32, device=device)
    if not num_rows:
        return ids, scores
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    borders = find_borders(logits, temperature, top_k, top_p, min_p, vocab_size, truncated_only=True)

    tile = tile_size(num_candidates)
    num_tiles, num_parts = triton.cdiv(vocab_size, tile), triton.cdiv(vocab_size, PART)
    tile_best = torch.empty(num_rows, num_tiles, dtype=torch.int64, device=device)
    part_best = torch.empty(num_rows, num_parts, dtype=torch.float32, device=device)
    part_sums = torch.empty(num_rows, num_parts, dtype=torch.float32, device=device)
    listed_tiles = torch.empty(num_rows, num_tiles, dtype=torch.int32, device=device)
    listed_keys = torch.empty(num_rows, num_candidates, dtype=torch.int64, device=device)
    sampling = (temperature, top_k, top_p, min_p, seeds, positions)
    row_arguments = (*sampling, noise_scale, truncation_penalty, borders.state)
    rank_tiles_kernel[(num_rows, num_parts)](
        logits,
        *row_arguments,
        tile_best,
        part_best,
        part_sums,
        logits.stride(0),
        vocab_size,
        logits.shape[1],
        num_tiles,
        sharpness,
        TILE=tile,
        TILES_TOGETHER=PART // tile,
        num_warps=8,
        enable_fp_fusion=False,
    )
    rank_rows_kernel[(num_rows,)](
        logits,
        *row_arguments,
        tile_best,
        part_best,
        part_sums,
        listed_tiles,
        listed_keys,
        ids,
        scores,
        logits.stride(0),
        vocab_size,
        logits.shape[1],
        num_tiles,
        num_parts,
        sharpness,
        TILE=tile,
        TILES=triton.next_power_of_2(num_tiles),
        PARTS=triton.next_power_of_2(num_parts),
        NUM_CANDIDATES=num_candidates,
        CANDIDATES=triton.next_power_of_2(num_candidates),
        num_warps=16,
        enable_fp_fusion=False,
    )
    return ids, scores


@rank_candidates_op.register_fake
def _(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    noise_scale: Tensor,
    truncation_penalty: Tensor,
    vocab_size: int,
    num_candidates: int,
    sharpness: float,
) -> tuple[Tensor, Tensor]:
    shape = (len(logits), num_candidates)
    return (
        torch.empty(shape, dtype=torch.int32, device=logits.device),
        torch.empty(shape, dtype=torch.float32, device=logits.device),
    )
