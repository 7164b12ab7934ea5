"""Tiles, runs of `TILE` ids: the best of each, found in one reading of the logits, and lists of those worth more.

Whatever looks at a row again touches only tiles whose best is good enough.
"""

import triton
import triton.language as tl

from dflash_core.sampling.device.kernels.keys import LARGEST_ID, pack
from dflash_core.sampling.device.kernels.rows import has_border, is_truncated, load_all_logits, scale


@triton.jit(do_not_specialize=["num_tiles"])
def tile_best_kernel(
    logits,  # [rows, row_stride]
    temperature,  # fp32 [rows]
    top_k,  # int32 [rows]
    top_p,  # fp32 [rows]
    min_p,  # fp32 [rows]
    tile_best,  # int64 [rows, num_tiles], out: (best of logits / T, lowest id that has the best of logits)
    tile_sums,  # fp32 [rows, num_tiles], out where top-p needs the row's whole mass: Σ exp(value − best of the tile)
    row_stride,
    vocab_size,
    row_width,  # logits of a row, padding included
    num_tiles,
    TILE: tl.constexpr,
    TILES_TOGETHER: tl.constexpr,
    TRUNCATED_ONLY: tl.constexpr,  # leave rows without top-k, top-p and min-p alone
):
    row = tl.program_id(0).to(tl.int64)
    row_temperature = tl.load(temperature + row)
    row_top_k = tl.load(top_k + row)
    row_top_p = tl.load(top_p + row)
    is_bordered = has_border(row_temperature, row_top_k, row_top_p, vocab_size)
    if (not is_truncated(row_temperature, is_bordered, tl.load(min_p + row))) & TRUNCATED_ONLY:
        return
    tiles = tl.program_id(1) * TILES_TOGETHER + tl.arange(0, TILES_TOGETHER)
    ids = tiles[:, None] * TILE + tl.arange(0, TILE)[None, :]
    raw = load_all_logits(logits + row * row_stride, ids, vocab_size, row_width)
    best = tl.max(raw, 1)
    best_id = tl.min(tl.where(raw == best[:, None], ids, LARGEST_ID), 1)
    best = tl.where(tl.max((raw != raw).to(tl.int32), 1) > 0, float("nan"), best)
    best = scale(best, row_temperature)  # the best of what is divided, for one division
    destination = row * num_tiles + tiles
    tl.store(tile_best + destination, pack(best, best_id), mask=tiles < num_tiles)
    if is_bordered & ((row_top_k <= 0) | (row_top_k >= vocab_size)):
        values = scale(raw, row_temperature)
        sums = tl.sum(tl.where(values > float("-inf"), tl.exp(values - best[:, None]), 0.0), 1)
        tl.store(tile_sums + destination, sums, mask=tiles < num_tiles)


@triton.jit
def list_tiles(tile_keys, least, listed_tiles, TILES: tl.constexpr):
    """Writes the indices of tiles with keys from `least` on; returns how many."""
    is_active = (tile_keys >= least).to(tl.int32)
    tl.debug_barrier()  # who still reads the list before this one
    tl.store(listed_tiles + tl.cumsum(is_active, 0) - 1, tl.arange(0, TILES), mask=is_active != 0)
    tl.debug_barrier()
    return tl.sum(is_active, 0)
