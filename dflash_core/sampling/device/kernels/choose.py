"""The winner of every row: the greatest key of logits / T + noise among the ids that truncation leaves.

One program per row and part of the vocabulary; the last one of a row to end writes its token. Only tiles that can hold
the winner are read: those whose best, with the most noise there is, reaches the row's best id with its own noise.
"""

import triton
import triton.language as tl

from dflash_core.sampling.device.kernels.borders import BEST, BORDER, NUM_DONE, STATE_SIZE, WINNER
from dflash_core.sampling.device.kernels.keys import NO_KEY, id_of, last_key, pack, token_of, value_of
from dflash_core.sampling.device.kernels.noise import MOST_NOISE, gumbel_like, gumbel_of_id
from dflash_core.sampling.device.kernels.rows import least_distance, load_logits, scale

NOISE_MARGIN = tl.constexpr(1e-5)  # ten times what two ways of computing the same noise may differ by


@triton.jit(do_not_specialize=["num_tiles"])
def choose_kernel(
    logits,  # [rows, row_stride]
    temperature,  # fp32 [rows]
    min_p,  # fp32 [rows]
    seeds,  # int64 [rows]
    positions,  # int64 [rows]
    tile_best,  # int64 [rows, num_tiles], as `tile_best_kernel` made it
    state,  # int64 [rows, STATE_SIZE]
    tokens,  # int64 [rows], out
    row_stride,
    vocab_size,
    num_tiles,
    TILE: tl.constexpr,
    TILES_TOGETHER: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    row_state = state + row * STATE_SIZE
    best = tl.load(row_state + BEST)
    best_value = value_of(best)
    row_temperature = tl.load(temperature + row)
    is_finite = (best_value > float("-inf")) & (best_value < float("inf"))  # and not NaN
    if (row_temperature == 0.0) | (is_finite == 0):
        tl.store(tokens + row, token_of(best), mask=part == 0)
        return

    border = tl.load(row_state + BORDER)
    least = least_distance(tl.load(min_p + row))
    seed = tl.load(seeds + row)
    position = tl.load(positions + row)
    # Should a border exclude the best id, it leaves only lower ids of the same logits / T: their tiles pass this too.
    bound = best_value + (gumbel_of_id(seed, position, id_of(best)) - NOISE_MARGIN)
    lanes = tl.arange(0, TILES_TOGETHER)
    tiles = part * TILES_TOGETHER + lanes
    tile_keys = tl.load(tile_best + row * num_tiles + tiles, mask=tiles < num_tiles, other=NO_KEY)
    tile_values = value_of(tile_keys)
    can_win = (tile_values + MOST_NOISE >= bound) & (tile_values - best_value >= least)
    can_win = can_win & (last_key(tile_values) >= border)
    promising = tl.sum(can_win.to(tl.int64) << lanes, 0)  # a bit for each tile
    winners = tl.full([TILE // 4, 4], NO_KEY, tl.int64)
    for i in range(TILES_TOGETHER):
        if ((promising >> i) & 1) == 1:
            tile = part * TILES_TOGETHER + i
            groups = tile * (TILE // 4) + tl.arange(0, TILE // 4)
            ids = groups[:, None] * 4 + tl.arange(0, 4)[None, :]
            values = scale(load_logits(logits + row * row_stride, ids, vocab_size), row_temperature)
            is_kept = (pack(values, ids) >= border) & (values - best_value >= least)
            scores = values + gumbel_like(values, seed, position, groups)
            winners = tl.maximum(winners, tl.where(is_kept, pack(scores, ids), NO_KEY))
    winner = tl.max(tl.max(winners, 1), 0)
    tl.atomic_max(row_state + WINNER, winner)
    # Both atomics are the same thread's, in this order: whoever counts last sees the winners of all.
    if tl.atomic_add(row_state + NUM_DONE, 1) == tl.num_programs(1) - 1:
        tl.store(tokens + row, token_of(tl.maximum(tl.atomic_max(row_state + WINNER, winner), winner)))
