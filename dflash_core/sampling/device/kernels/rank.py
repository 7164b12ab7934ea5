"""The K best candidates of every row by the drafter's score, and the logarithm of the sum that normalises it.

The first kernel scores every id once and keeps the best key of each tile and a sum of exponentials of each part of the
vocabulary. The K best ids lie in the K tiles with the best keys: a better id in another tile would give that tile a
better key. So the second kernel, one program per row, scores those tiles again and takes the best of few thousand ids.
"""

import triton
import triton.language as tl

from dflash_core.sampling.device.kernels.borders import BEST, BORDER, STATE_SIZE
from dflash_core.sampling.device.kernels.keys import LARGEST_ID, NO_KEY, id_of, least_of_best, pack, value_of
from dflash_core.sampling.device.kernels.noise import gumbel_like
from dflash_core.sampling.device.kernels.rows import has_border, is_truncated, least_distance, load_all_logits, scale
from dflash_core.sampling.device.kernels.tiles import list_tiles


@triton.jit
def _score_tiles(
    row,
    tiles,  # int32 [n]
    logits,
    temperature,
    top_k,
    top_p,
    min_p,
    seeds,
    positions,
    noise_scale,
    truncation_penalty,
    state,
    row_stride,
    vocab_size,
    row_width,
    sharpness,
    TILE: tl.constexpr,
):
    """The scores before normalisation, −inf where there is no id, and the ids; both `[n, TILE // 4, 4]`."""
    row_temperature = tl.load(temperature + row)
    groups = tiles[:, None] * (TILE // 4) + tl.arange(0, TILE // 4)[None, :]
    ids = groups[:, :, None] * 4 + tl.arange(0, 4)[None, None, :]
    raw = load_all_logits(logits + row * row_stride, ids, vocab_size, row_width)
    scores = raw
    if row_temperature > 0.0:
        row_noise_scale = tl.load(noise_scale + row)
        if row_noise_scale > 0.0:
            noise = gumbel_like(raw, tl.load(seeds + row), tl.load(positions + row), groups)
            scores = raw + row_noise_scale * noise
        is_bordered = has_border(row_temperature, tl.load(top_k + row), tl.load(top_p + row), vocab_size)
        row_min_p = tl.load(min_p + row)
        if is_truncated(row_temperature, is_bordered, row_min_p):
            scaled = scale(raw, row_temperature)
            distances = scaled - value_of(tl.load(state + row * STATE_SIZE + BEST))
            is_inside = pack(scaled, ids) >= tl.load(state + row * STATE_SIZE + BORDER)
            is_inside = is_inside & (distances >= least_distance(row_min_p))
            scores = tl.where(is_inside, scores, scores - tl.load(truncation_penalty + row))
        if sharpness != 1.0:
            scores = tl.math.div_rn(scores, sharpness)
    return scores, ids


@triton.jit(do_not_specialize=["num_tiles"])
def rank_tiles_kernel(
    logits,  # [rows, row_stride]
    temperature,  # fp32 [rows]
    top_k,  # int32 [rows]
    top_p,  # fp32 [rows]
    min_p,  # fp32 [rows]
    seeds,  # int64 [rows]
    positions,  # int64 [rows]
    noise_scale,  # fp32 [rows]; 0 is without noise
    truncation_penalty,  # fp32 [rows]
    state,  # int64 [rows, STATE_SIZE], of `border_kernel`
    tile_best,  # int64 [rows, num_tiles], out: the best key of the scores
    part_best,  # fp32 [rows, parts], out
    part_sums,  # fp32 [rows, parts], out: Σ exp(score − best of the part)
    row_stride,
    vocab_size,
    row_width,  # logits of a row, padding included
    num_tiles,
    sharpness,
    TILE: tl.constexpr,
    TILES_TOGETHER: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    tiles = part * TILES_TOGETHER + tl.arange(0, TILES_TOGETHER)
    scores, ids = _score_tiles(
        row,
        tiles,
        logits,
        temperature,
        top_k,
        top_p,
        min_p,
        seeds,
        positions,
        noise_scale,
        truncation_penalty,
        state,
        row_stride,
        vocab_size,
        row_width,
        sharpness,
        TILE,
    )
    best = tl.max(tl.max(scores, 2), 1)
    best_ids = tl.where(scores == best[:, None, None], ids, LARGEST_ID)
    best_id = tl.minimum(tl.min(tl.min(best_ids, 2), 1), tiles * TILE + TILE - 1)  # all NaN: still an id of its own
    tl.store(tile_best + row * num_tiles + tiles, pack(best, best_id), mask=tiles < num_tiles)
    shift = tl.max(best, 0)
    weights = tl.exp(scores - tl.where(shift == float("-inf"), 0.0, shift))
    destination = row * tl.num_programs(1) + part
    tl.store(part_best + destination, shift)
    tl.store(part_sums + destination, tl.sum(tl.sum(tl.sum(weights, 2), 1), 0))


@triton.jit(do_not_specialize=["num_tiles", "num_parts"])
def rank_rows_kernel(
    logits,  # [rows, row_stride]
    temperature,  # fp32 [rows]
    top_k,  # int32 [rows]
    top_p,  # fp32 [rows]
    min_p,  # fp32 [rows]
    seeds,  # int64 [rows]
    positions,  # int64 [rows]
    noise_scale,  # fp32 [rows]; 0 is without noise
    truncation_penalty,  # fp32 [rows]
    state,  # int64 [rows, STATE_SIZE], of `border_kernel`
    tile_best,  # int64 [rows, num_tiles]
    part_best,  # fp32 [rows, parts]
    part_sums,  # fp32 [rows, parts]
    listed_tiles,  # int32 [rows, num_tiles], scratch
    listed_keys,  # int64 [rows, NUM_CANDIDATES], scratch
    ids,  # int32 [rows, NUM_CANDIDATES], out
    scores,  # fp32 [rows, NUM_CANDIDATES], out
    row_stride,
    vocab_size,
    row_width,  # logits of a row, padding included
    num_tiles,
    num_parts,
    sharpness,
    TILE: tl.constexpr,
    TILES: tl.constexpr,  # a power of 2, at least num_tiles
    PARTS: tl.constexpr,  # a power of 2, at least num_parts
    NUM_CANDIDATES: tl.constexpr,
    CANDIDATES: tl.constexpr,  # a power of 2, at least NUM_CANDIDATES
):
    row = tl.program_id(0).to(tl.int64)
    tiles = tl.arange(0, TILES)
    tile_keys = tl.load(tile_best + row * num_tiles + tiles, mask=tiles < num_tiles, other=NO_KEY)
    row_tiles = listed_tiles + row * num_tiles
    num_listed = list_tiles(tile_keys, least_of_best(tile_keys, NUM_CANDIDATES), row_tiles, TILES)
    lanes = tl.arange(0, CANDIDATES)
    raw_scores, raw_ids = _score_tiles(
        row,
        tl.load(row_tiles + lanes, mask=lanes < num_listed, other=0),
        logits,
        temperature,
        top_k,
        top_p,
        min_p,
        seeds,
        positions,
        noise_scale,
        truncation_penalty,
        state,
        row_stride,
        vocab_size,
        row_width,
        sharpness,
        TILE,
    )
    is_real = (lanes < num_listed)[:, None, None] & (raw_ids < vocab_size)
    keys = tl.reshape(tl.where(is_real, pack(raw_scores, raw_ids), NO_KEY), [CANDIDATES * TILE])
    is_candidate = keys >= least_of_best(keys, NUM_CANDIDATES)
    row_keys = listed_keys + row * NUM_CANDIDATES
    tl.store(row_keys + tl.cumsum(is_candidate.to(tl.int32), 0) - 1, keys, mask=is_candidate)
    tl.debug_barrier()
    is_listed = lanes < NUM_CANDIDATES
    keys = tl.sort(tl.load(row_keys + lanes, mask=is_listed, other=NO_KEY), descending=True)

    parts = tl.arange(0, PARTS)
    is_part = parts < num_parts
    bests = tl.load(part_best + row * num_parts + parts, mask=is_part, other=float("-inf"))
    sums = tl.load(part_sums + row * num_parts + parts, mask=is_part, other=0.0)
    best = tl.max(bests, 0)
    total = tl.sum(tl.where(sums > 0.0, sums * tl.exp(bests - best), 0.0), 0)
    # A row of −inf alone has no sum: its scores stay −inf.
    normalised = tl.where(total > 0.0, (value_of(keys) - best) - tl.log(total), float("-inf"))
    tl.store(ids + row * NUM_CANDIDATES + lanes, id_of(keys), mask=is_listed)
    tl.store(scores + row * NUM_CANDIDATES + lanes, normalised, mask=is_listed)
