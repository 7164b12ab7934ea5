"""Split-KV tree attention: a fixed grid of programs works through the items of the round's work list.

```
rows of a tile  | row 0: head 0 … head G−1 | row 1: head 0 … | …     one KV head, its G query heads
keys of an item | a chunk of the prefix, from pages | all in-flight keys, if the chunk is the last |
```
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _load(pointers, mask, UPCAST: tl.constexpr):
    loaded = tl.load(pointers, mask=mask, other=0.0)
    # The interpreter computes wrong products in bf16.
    return loaded.to(tl.float32) if UPCAST else loaded


@triton.jit
def _blocks(table, slots, stop, KV_BLOCK_SIZE: tl.constexpr):
    """The blocks that hold a tile's keys; int64.

    Asked for one tile ahead: keys whose block is loaded in the same round of the loop would be copied a stage later
    in the pipeline, and have no time left to arrive while others are multiplied.
    """
    return tl.load(table + slots // KV_BLOCK_SIZE, mask=slots < stop, other=0).to(tl.int64)


@triton.jit
def _scores(query, key, scale, softcap, HAS_SOFTCAP: tl.constexpr, PRECISION: tl.constexpr):
    """Scores `[rows, keys]`, but for the factor that `_accumulate` multiplies them with on the way."""
    products = tl.dot(query, tl.trans(key), input_precision=PRECISION)
    if HAS_SOFTCAP:
        # tanh(x) = 1 − 2 / (1 + e^2x): right at both infinities, and of primitives that the interpreter knows.
        grown = tl.exp2(products * (scale / softcap * 2.0 * LOG2_E))
        return 1.0 - 2.0 / (1.0 + grown)
    return products


@triton.jit
def _accumulate(scores, factor, value, highest, total, output, PRECISION: tl.constexpr):
    """One step of the online softmax. Rows that have seen nothing yet stay at highest −inf, total 0.

    A factor above 0 does not change which score is highest: multiplied late, it costs nothing beside the subtraction.
    """
    risen = tl.maximum(highest, tl.max(scores, 1) * factor)
    reference = tl.where(risen == float("-inf"), 0.0, risen)
    weights = tl.exp2(scores * factor - reference[:, None])
    shrink = tl.exp2(highest - reference)
    total = total * shrink + tl.sum(weights, 1)
    output = tl.dot(weights.to(value.dtype), value, output * shrink[:, None], input_precision=PRECISION)
    return risen, total, output


# Not specialised: they differ between rounds or layers, and each kind of number would compile another kernel.
@triton.jit(do_not_specialize=["max_blocks", "sliding_window"])
def attention_kernel(
    query,  # [num_rows, num_heads, HEAD_DIM]
    key,  # [num_rows, num_kv_heads, HEAD_DIM]
    value,  # [num_rows, num_kv_heads, HEAD_DIM]
    kv_pages,  # [2, num_blocks, KV_BLOCK_SIZE, num_kv_heads, HEAD_DIM]
    cu_rows,  # int32 [num_sequences + 1]
    prefix_lens,  # int32 [num_sequences]
    block_tables,  # int32 [num_sequences, max_blocks]
    positions,  # int32 [num_rows]
    first_rows,  # int32 [num_rows]
    end_rows,  # int32 [num_rows]
    items,  # int32 [max_items, 4]
    row_splits,  # int32 [num_rows, 2]
    header,  # int32 [2]
    output,  # [num_rows, num_heads, HEAD_DIM]: rows of sequences with one split
    partial_outputs,  # fp32 [max_partial_rows, num_heads, HEAD_DIM]: the others, normalised within the split
    partial_lses,  # fp32 [max_partial_rows, num_heads]: log2 of the split's sum; −inf where a row saw nothing
    scale,
    softcap,
    sliding_window,
    query_row_stride,
    query_head_stride,
    key_row_stride,
    key_head_stride,
    value_row_stride,
    value_head_stride,
    pages_kind_stride,
    pages_block_stride,
    pages_token_stride,
    pages_head_stride,
    max_blocks,
    num_heads,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,  # the power of two that holds HEAD_DIM
    KV_BLOCK_SIZE: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_KEYS: tl.constexpr,
    IS_CAUSAL: tl.constexpr,  # no row sees a later row
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    num_items = tl.load(header)
    chunk_len = tl.load(header + 1)
    factor = (softcap if HAS_SOFTCAP else scale) * LOG2_E  # scores in units of log 2: their exponentials are `exp2`
    tile_lanes = tl.arange(0, TILE_ROWS)
    key_lanes = tl.arange(0, TILE_KEYS)
    dims = tl.arange(0, PADDED_DIM)
    is_dim = dims < HEAD_DIM

    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        sequence = tl.load(items + item * 4)
        row_tile = tl.load(items + item * 4 + 1)
        kv_head = tl.load(items + item * 4 + 2)
        chunk = tl.load(items + item * 4 + 3)
        start_row = tl.load(cu_rows + sequence)
        stop_row = tl.load(cu_rows + sequence + 1)
        prefix_len = tl.load(prefix_lens + sequence)
        num_splits = tl.load(row_splits + start_row * 2)

        packed = row_tile * TILE_ROWS + tile_lanes
        rows = start_row + packed // GROUP_SIZE
        heads = kv_head * GROUP_SIZE + packed % GROUP_SIZE
        is_row = rows < stop_row
        cells = is_row[:, None] & is_dim[None, :]
        queries = _load(
            query + (rows * query_row_stride + heads * query_head_stride)[:, None] + dims[None, :], cells, UPCAST
        )

        highest = tl.full([TILE_ROWS], float("-inf"), tl.float32)
        total = tl.zeros([TILE_ROWS], tl.float32)
        result = tl.zeros([TILE_ROWS, PADDED_DIM], tl.float32)

        start = chunk * chunk_len
        stop = tl.minimum(start + chunk_len, prefix_len)
        oldest = tl.zeros([TILE_ROWS], tl.int32)  # first position that each row sees
        full_stop = tl.maximum(stop - start, 0) // TILE_KEYS * TILE_KEYS + start
        if HAS_WINDOW:
            oldest = tl.load(positions + rows, mask=is_row, other=0x7FFFFFFF) - sliding_window + 1
            start = tl.maximum(start, tl.min(oldest, 0) // TILE_KEYS * TILE_KEYS)
            full_stop = start  # windowed layers have few keys: all of them go the masked way

        table = block_tables + sequence * max_blocks
        pages = kv_pages + kv_head * pages_head_stride
        blocks = _blocks(table, start + key_lanes, full_stop, KV_BLOCK_SIZE)
        for first_key in range(start, full_stop, TILE_KEYS):
            slots = first_key + key_lanes
            tokens = blocks * pages_block_stride + (slots % KV_BLOCK_SIZE) * pages_token_stride
            blocks = _blocks(table, slots + TILE_KEYS, full_stop, KV_BLOCK_SIZE)
            pointers = pages + tokens[:, None] + dims[None, :]
            keys = _load(pointers, is_dim[None, :], UPCAST)
            scores = _scores(queries, keys, scale, softcap, HAS_SOFTCAP, PRECISION)
            values = _load(pointers + pages_kind_stride, is_dim[None, :], UPCAST)
            highest, total, result = _accumulate(scores, factor, values, highest, total, result, PRECISION)

        blocks = _blocks(table, full_stop + key_lanes, stop, KV_BLOCK_SIZE)
        for first_key in range(full_stop, stop, TILE_KEYS):
            slots = first_key + key_lanes
            is_key = slots < stop
            tokens = blocks * pages_block_stride + (slots % KV_BLOCK_SIZE) * pages_token_stride
            blocks = _blocks(table, slots + TILE_KEYS, stop, KV_BLOCK_SIZE)
            pointers = pages + tokens[:, None] + dims[None, :]
            is_cell = is_key[:, None] & is_dim[None, :]
            keys = _load(pointers, is_cell, UPCAST)
            scores = _scores(queries, keys, scale, softcap, HAS_SOFTCAP, PRECISION)
            is_seen = is_key[None, :]
            if HAS_WINDOW:
                is_seen = is_seen & (slots[None, :] >= oldest[:, None])
            scores = tl.where(is_seen, scores, float("-inf"))
            values = _load(pointers + pages_kind_stride, is_cell, UPCAST)
            highest, total, result = _accumulate(scores, factor, values, highest, total, result, PRECISION)

        stop_inflight = stop_row
        if IS_CAUSAL:
            stop_inflight = tl.minimum(stop_row, start_row + (row_tile * TILE_ROWS + TILE_ROWS - 1) // GROUP_SIZE + 1)
        if chunk < num_splits - 1:
            stop_inflight = start_row
        for first_key in range(start_row, stop_inflight, TILE_KEYS):
            others = first_key + key_lanes
            is_key = others < stop_inflight
            is_cell = is_key[:, None] & is_dim[None, :]
            keys = _load(
                key + (others * key_row_stride + kv_head * key_head_stride)[:, None] + dims[None, :], is_cell, UPCAST
            )
            scores = _scores(queries, keys, scale, softcap, HAS_SOFTCAP, PRECISION)
            seen_from = tl.load(first_rows + others, mask=is_key, other=0)
            seen_until = tl.load(end_rows + others, mask=is_key, other=0)  # 0: seen by none
            is_seen = (seen_from[None, :] <= rows[:, None]) & (rows[:, None] < seen_until[None, :])
            if HAS_WINDOW:
                is_seen = is_seen & (tl.load(positions + others, mask=is_key, other=0)[None, :] >= oldest[:, None])
            scores = tl.where(is_seen, scores, float("-inf"))
            values = _load(
                value + (others * value_row_stride + kv_head * value_head_stride)[:, None] + dims[None, :],
                is_cell,
                UPCAST,
            )
            highest, total, result = _accumulate(scores, factor, values, highest, total, result, PRECISION)

        total = tl.where(total == 0.0, 1.0, total)  # of a row that saw nothing in this chunk; its `highest` is −inf
        result = result / total[:, None]
        if num_splits == 1:
            destination = (rows * num_heads + heads) * HEAD_DIM
            tl.store(output + destination[:, None] + dims[None, :], result.to(output.dtype.element_ty), mask=cells)
        else:
            first_partials = tl.load(row_splits + rows * 2 + 1, mask=is_row, other=0).to(tl.int64)
            place = (first_partials + chunk) * num_heads + heads
            tl.store(partial_lses + place, highest + tl.log2(total), mask=is_row)
            tl.store(partial_outputs + (place * HEAD_DIM)[:, None] + dims[None, :], result, mask=cells)
