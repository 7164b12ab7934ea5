"""The kernel that cuts a round's attention into items of about equal work, on the device.

An item is (sequence, row tile, KV head, chunk of the prefix). Chunks of all sequences have one length, the one that
makes the whole list finish soonest by a simple count of waves. Each program finds that length by itself, which costs
less than another launch, and then writes the items of its own sequence.
"""

import triton
import triton.language as tl

ITEM_OVERHEAD = tl.constexpr(2)  # what starting and ending an item costs, in tiles of keys


@triton.jit
def _lengths(cu_rows, prefix_lens, sequences, num_sequences):
    """In-flight rows and prefix lengths of some sequences; 0 beyond the last."""
    is_real = sequences < num_sequences
    starts = tl.load(cu_rows + sequences, mask=is_real, other=0)
    ends = tl.load(cu_rows + sequences + 1, mask=is_real, other=0)
    return ends - starts, tl.load(prefix_lens + sequences, mask=is_real, other=0)


@triton.jit
def _num_splits(num_rows, prefix_len, chunk_len):
    """The in-flight keys join the last chunk: so a chunk that only they would fill is not cut off."""
    inflight = tl.minimum(num_rows, chunk_len)
    splits = (prefix_len + inflight + chunk_len - 1) // chunk_len
    return tl.maximum(splits, 1)


# Not specialised: sizes differ from round to round, and each kind of number would compile another kernel.
@triton.jit(do_not_specialize=["num_sequences", "num_rows", "num_programs", "max_items", "max_partial_rows"])
def work_list_kernel(
    cu_rows,  # int32 [num_sequences + 1]
    prefix_lens,  # int32 [num_sequences]
    items,  # int32 [max_items, 4]: sequence, row tile, KV head, chunk
    row_splits,  # int32 [num_rows, 2]: splits of the row's sequence, the row's first partial result; (0, 0): padding
    header,  # int32 [2]: number of items, keys in a chunk
    num_sequences,
    num_rows,
    num_programs,  # of the attention kernel
    max_items,
    max_partial_rows,
    NUM_KV_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    CHUNK_UNIT: tl.constexpr,
    PADDED_SEQUENCES: tl.constexpr,  # a power of 2, at least num_sequences
    SEQUENCES: tl.constexpr,  # sequences looked at together
    CANDIDATES: tl.constexpr,  # chunk lengths compared: the longest sequence cut into 1, 2, … CANDIDATES
    ITEMS: tl.constexpr,  # items or rows written together
):
    sequence = tl.program_id(0)
    lanes = tl.arange(0, SEQUENCES)

    # Sequences without rows, of a padded size, stand behind all others: nothing is to be done for them.
    padded = tl.arange(0, PADDED_SEQUENCES)
    starts = tl.load(cu_rows + padded, mask=padded < num_sequences, other=0x7FFFFFFF)
    num_real = tl.sum((starts < tl.load(cu_rows + num_sequences)).to(tl.int32), 0)
    if sequence >= tl.maximum(num_real, 1):
        return

    longest = 1
    for start in range(0, num_real, SEQUENCES):
        rows, prefixes = _lengths(cu_rows, prefix_lens, start + lanes, num_sequences)
        longest = tl.maximum(longest, tl.max(prefixes + rows, 0))

    cuts = tl.arange(0, CANDIDATES) + 1
    chunk_lens = (longest + cuts * CHUNK_UNIT - 1) // (cuts * CHUNK_UNIT) * CHUNK_UNIT
    num_items = tl.zeros([CANDIDATES], tl.int32)
    num_partials = tl.zeros([CANDIDATES], tl.int32)
    for start in range(0, num_real, SEQUENCES):
        rows, prefixes = _lengths(cu_rows, prefix_lens, start + lanes, num_sequences)
        row_tiles = (rows * GROUP_SIZE + TILE_ROWS - 1) // TILE_ROWS
        splits = _num_splits(rows[:, None], prefixes[:, None], chunk_lens[None, :])
        num_items += tl.sum(row_tiles[:, None] * splits, 0) * NUM_KV_HEADS
        num_partials += tl.sum(tl.where(splits > 1, rows[:, None] * splits, 0), 0)
    waves = (num_items + num_programs - 1) // num_programs
    cost = waves * (chunk_lens // CHUNK_UNIT + ITEM_OVERHEAD)
    cost = tl.where((num_items <= max_items) & (num_partials <= max_partial_rows), cost, 0x7FFFFFFF)
    fewest = tl.min(tl.where(cost == tl.min(cost, 0), cuts, CANDIDATES), 0)
    chunk_len = tl.sum(tl.where(cuts == fewest, chunk_lens, 0), 0)

    total_items = 0
    first_item = 0
    first_partial = 0
    for start in range(0, num_real, SEQUENCES):
        rows, prefixes = _lengths(cu_rows, prefix_lens, start + lanes, num_sequences)
        splits = _num_splits(rows, prefixes, chunk_len)
        counts = (rows * GROUP_SIZE + TILE_ROWS - 1) // TILE_ROWS * splits * NUM_KV_HEADS
        is_before = start + lanes < sequence
        total_items += tl.sum(counts, 0)
        first_item += tl.sum(tl.where(is_before, counts, 0), 0)
        first_partial += tl.sum(tl.where(is_before & (splits > 1), rows * splits, 0), 0)

    first_row = tl.load(cu_rows + sequence)
    own_rows = tl.load(cu_rows + sequence + 1) - first_row
    own_splits = _num_splits(own_rows, tl.load(prefix_lens + sequence), chunk_len)
    own_tiles = (own_rows * GROUP_SIZE + TILE_ROWS - 1) // TILE_ROWS
    if sequence == 0:
        tl.store(header, total_items)
        tl.store(header + 1, chunk_len)
    for start in range(0, own_tiles * own_splits * NUM_KV_HEADS, ITEMS):
        # Row tiles vary fastest: programs that run together read the same chunk, all but one of them from the L2.
        item = start + tl.arange(0, ITEMS)
        fits = item < own_tiles * own_splits * NUM_KV_HEADS
        destination = items + (first_item + item) * 4
        tl.store(destination, tl.zeros([ITEMS], tl.int32) + sequence, mask=fits)
        tl.store(destination + 1, item % own_tiles, mask=fits)
        tl.store(destination + 2, item // own_tiles // own_splits, mask=fits)
        tl.store(destination + 3, item // own_tiles % own_splits, mask=fits)
    for start in range(0, own_rows, ITEMS):
        row = start + tl.arange(0, ITEMS)
        destination = row_splits + (first_row + row) * 2
        tl.store(destination, tl.zeros([ITEMS], tl.int32) + own_splits, mask=row < own_rows)
        tl.store(destination + 1, first_partial + row * own_splits, mask=row < own_rows)
    if sequence >= num_real - 1:
        for start in range(first_row + own_rows, num_rows, ITEMS):
            row = start + tl.arange(0, ITEMS)
            tl.store(row_splits + row * 2, tl.zeros([ITEMS], tl.int32), mask=row < num_rows)
            tl.store(row_splits + row * 2 + 1, tl.zeros([ITEMS], tl.int32), mask=row < num_rows)
