"""The best of every row, and the least key inside its top-k and top-p, without a sort.

One program per row looks for the border among the tiles: by ever longer distances from the best until enough ids are
covered, then by halving the interval of keys that holds the border; once few ids are in it they are held in registers.
Counts and masses are integers: so no order of sums can move a border, and halving never meets a contradiction.
"""

import triton
import triton.language as tl

from dflash_core.sampling.device.kernels.keys import LEAST_KEY, NO_KEY, first_key, last_key, middle_of, pack, value_of
from dflash_core.sampling.device.kernels.rows import has_border, load_logits, scale
from dflash_core.sampling.device.kernels.tiles import list_tiles

UNIT_MASS = tl.constexpr(2.0**44)  # of the best id; 2¹⁹ of them fit in an int64

BEST = tl.constexpr(0)
BORDER = tl.constexpr(1)
WINNER = tl.constexpr(2)
NUM_DONE = tl.constexpr(3)
STATE_SIZE = tl.constexpr(4)


@triton.jit
def _mass(distance):
    """exp(distance) in fixed point, int64; `distance` is 0 at the best and negative elsewhere."""
    return (tl.exp(distance) * UNIT_MASS).to(tl.int64)


@triton.jit
def _load_keys(
    row_logits,
    temperature,
    vocab_size,
    listed_tiles,
    num_listed,
    start,
    TILE: tl.constexpr,
    TILES_TOGETHER: tl.constexpr,
):
    """Keys of the listed tiles from `start` on, int64 `[TILES_TOGETHER, TILE]`; `NO_KEY` beyond the last."""
    lanes = start + tl.arange(0, TILES_TOGETHER)
    tiles = tl.load(listed_tiles + lanes, mask=lanes < num_listed, other=0)
    ids = tiles[:, None] * TILE + tl.arange(0, TILE)[None, :]
    keys = pack(scale(load_logits(row_logits, ids, vocab_size), temperature), ids)
    return tl.where((lanes < num_listed)[:, None] & (ids < vocab_size), keys, NO_KEY)


@triton.jit
def _measure(
    row_logits,
    temperature,
    vocab_size,
    best_value,
    least,
    listed_tiles,
    num_listed,
    TILE: tl.constexpr,
    TILES_TOGETHER: tl.constexpr,
):
    """How many ids of the listed tiles have keys from `least` on, and their mass; both int64."""
    counts = tl.zeros([TILES_TOGETHER, TILE], tl.int32)
    masses = tl.zeros([TILES_TOGETHER, TILE], tl.int64)
    for start in range(0, num_listed, TILES_TOGETHER):
        keys = _load_keys(row_logits, temperature, vocab_size, listed_tiles, num_listed, start, TILE, TILES_TOGETHER)
        is_above = keys >= least
        counts += is_above.to(tl.int32)
        masses += tl.where(is_above, _mass(value_of(keys) - best_value), 0)
    return tl.sum(tl.sum(counts, 1), 0).to(tl.int64), tl.sum(tl.sum(masses, 1), 0)


@triton.jit
def _list_keys(
    row_logits,
    temperature,
    vocab_size,
    low,
    high,
    listed_tiles,
    num_listed,
    listed_keys,
    TILE: tl.constexpr,
    TILES_TOGETHER: tl.constexpr,
):
    """Writes the keys of [low, high), in any order."""
    tl.debug_barrier()  # who still reads the list before this one
    first = 0
    for start in range(0, num_listed, TILES_TOGETHER):
        keys = _load_keys(row_logits, temperature, vocab_size, listed_tiles, num_listed, start, TILE, TILES_TOGETHER)
        is_inside = (keys >= low) & (keys < high)
        in_tile = tl.cumsum(is_inside.to(tl.int32), 1)
        of_tile = tl.sum(is_inside.to(tl.int32), 1)
        before = tl.cumsum(of_tile, 0) - of_tile
        tl.store(listed_keys + first + before[:, None] + in_tile - 1, keys, mask=is_inside)
        first += tl.sum(of_tile, 0)
    tl.debug_barrier()


@triton.jit
def _find_border(
    row_logits,
    temperature,
    vocab_size,
    tile_keys,  # int64 [TILES], `tile_best`
    wanted_count,  # int64
    wanted_mass,  # int64
    listed_tiles,
    listed_keys,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    TILES_TOGETHER: tl.constexpr,
    KEYS_HELD: tl.constexpr,
):
    """The greatest key from which on there are `wanted_count` ids and `wanted_mass`; and the mass from it on.

    One of the two is wanted, the other is 0. Throughout, [low, …) has what is wanted and [high, …) has not.
    """
    best_value = value_of(tl.max(tile_keys, 0))
    high = last_key(best_value) + 1
    count_above = tl.full([], 0, tl.int64)
    mass_above = tl.full([], 0, tl.int64)

    reach = 2.0
    low = first_key(best_value - reach)
    num_listed = list_tiles(tile_keys, low, listed_tiles, TILES)
    count, mass = _measure(
        row_logits, temperature, vocab_size, best_value, low, listed_tiles, num_listed, TILE, TILES_TOGETHER
    )
    while ((count < wanted_count) | (mass < wanted_mass)) & (low > LEAST_KEY):
        high = low
        count_above = count
        mass_above = mass
        reach *= 2.0
        low = tl.where(reach <= 64.0, first_key(best_value - reach), LEAST_KEY)
        num_listed = list_tiles(tile_keys, low, listed_tiles, TILES)
        count, mass = _measure(
            row_logits, temperature, vocab_size, best_value, low, listed_tiles, num_listed, TILE, TILES_TOGETHER
        )
    border = tl.full([], LEAST_KEY, tl.int64)
    # A top-p within rounding of 1 may want more mass than there is: then every id is inside.
    if (count >= wanted_count) & (mass >= wanted_mass):
        while count - count_above > KEYS_HELD:
            middle = middle_of(low, high)
            some_count, some_mass = _measure(
                row_logits, temperature, vocab_size, best_value, middle, listed_tiles, num_listed, TILE, TILES_TOGETHER
            )
            if (some_count >= wanted_count) & (some_mass >= wanted_mass):
                low = middle
                count = some_count
                mass = some_mass
            else:
                high = middle
                count_above = some_count
                mass_above = some_mass
        _list_keys(
            row_logits,
            temperature,
            vocab_size,
            low,
            high,
            listed_tiles,
            num_listed,
            listed_keys,
            TILE,
            TILES_TOGETHER,
        )
        lanes = tl.arange(0, KEYS_HELD)
        keys = tl.load(listed_keys + lanes, mask=lanes < count - count_above, other=NO_KEY)
        masses = tl.where(keys >= low, _mass(value_of(keys) - best_value), 0)
        while count - count_above > 1:
            middle = middle_of(low, high)
            is_inside = (keys >= middle) & (keys < high)
            some_count = count_above + tl.sum(is_inside.to(tl.int32), 0)
            some_mass = mass_above + tl.sum(tl.where(is_inside, masses, 0), 0)
            if (some_count >= wanted_count) & (some_mass >= wanted_mass):
                low = middle
                count = some_count
                mass = some_mass
            else:
                high = middle
                count_above = some_count
                mass_above = some_mass
        border = tl.max(tl.where((keys >= low) & (keys < high), keys, NO_KEY), 0)
    return border, mass


@triton.jit(do_not_specialize=["num_tiles"])
def border_kernel(
    logits,  # [rows, row_stride]
    temperature,  # fp32 [rows]
    top_k,  # int32 [rows]
    top_p,  # fp32 [rows]
    tile_best,  # int64 [rows, num_tiles]
    tile_sums,  # fp32 [rows, num_tiles]
    listed_tiles,  # int32 [rows, num_tiles], scratch
    listed_keys,  # int64 [rows, KEYS_HELD], scratch
    state,  # int64 [rows, STATE_SIZE], out
    row_stride,
    vocab_size,
    num_tiles,
    TILE: tl.constexpr,
    TILES: tl.constexpr,  # a power of 2, at least num_tiles
    TILES_TOGETHER: tl.constexpr,
    KEYS_HELD: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_temperature = tl.load(temperature + row)
    row_top_k = tl.load(top_k + row)
    row_top_p = tl.load(top_p + row)
    tiles = tl.arange(0, TILES)
    tile_keys = tl.load(tile_best + row * num_tiles + tiles, mask=tiles < num_tiles, other=NO_KEY)
    best = tl.max(tile_keys, 0)
    best_value = value_of(best)
    row_state = state + row * STATE_SIZE
    tl.store(row_state + BEST, best)
    tl.store(row_state + BORDER, LEAST_KEY)
    tl.store(row_state + WINNER, NO_KEY)
    tl.store(row_state + NUM_DONE, 0)
    is_finite = (best_value > float("-inf")) & (best_value < float("inf"))  # and not NaN
    if not (has_border(row_temperature, row_top_k, row_top_p, vocab_size) & is_finite):
        return
    row_logits = logits + row * row_stride
    row_tiles = listed_tiles + row * num_tiles
    row_keys = listed_keys + row * KEYS_HELD
    nothing = tl.full([], 0, tl.int64)
    border = tl.full([], LEAST_KEY, tl.int64)
    if (row_top_k > 0) & (row_top_k < vocab_size):
        border, total = _find_border(
            row_logits,
            row_temperature,
            vocab_size,
            tile_keys,
            row_top_k.to(tl.int64),
            nothing,
            row_tiles,
            row_keys,
            TILE,
            TILES,
            TILES_TOGETHER,
            KEYS_HELD,
        )
    else:
        sums = tl.load(tile_sums + row * num_tiles + tiles, mask=tiles < num_tiles, other=0.0)
        shares = tl.exp(value_of(tile_keys) - best_value)
        total = tl.sum(tl.where(sums > 0.0, sums * shares * UNIT_MASS, 0.0).to(tl.int64), 0)
    if row_top_p < 1.0:
        wanted_mass = tl.ceil(row_top_p.to(tl.float64) * total.to(tl.float64)).to(tl.int64)
        # The ids counted need not be inside top-k: a border that gives a part of top-k's mass lies within top-k.
        border, total = _find_border(
            row_logits,
            row_temperature,
            vocab_size,
            tile_keys,
            nothing,
            tl.maximum(wanted_mass, 1),
            row_tiles,
            row_keys,
            TILE,
            TILES,
            TILES_TOGETHER,
            KEYS_HELD,
        )
    tl.store(row_state + BORDER, border)
