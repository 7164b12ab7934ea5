"""Rows that find their own way: to a slot of the pages, to the staging buffer, or nowhere."""

import triton
import triton.language as tl


@triton.jit
def store_kernel(
    key,  # words [num_rows, num_kv_heads, HEAD_DIM]
    value,
    pages,  # words [2, num_slots, num_kv_heads, HEAD_DIM], one layer's keys, then values
    staging,  # words [2, max_tree_rows, num_kv_heads, HEAD_DIM]
    page_slots,  # int32 [num_rows]; negative: not to pages
    staged_rows,  # int32 [num_rows]; negative: not to the staging buffer either
    key_row_stride,
    key_head_stride,
    value_row_stride,
    value_head_stride,
    pages_kind_stride,
    staging_kind_stride,
    num_kv_heads,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    kind = tl.program_id(1).to(tl.int64)
    page_slot = tl.load(page_slots + row).to(tl.int64)
    staged_row = tl.load(staged_rows + row).to(tl.int64)
    if page_slot < 0 and staged_row < 0:
        return
    heads = tl.arange(0, PADDED_HEADS)
    dims = tl.arange(0, PADDED_DIM)
    is_cell = (heads < num_kv_heads)[:, None] & (dims < HEAD_DIM)[None, :]
    if kind == 0:
        source = key + row * key_row_stride + (heads * key_head_stride)[:, None] + dims[None, :]
    else:
        source = value + row * value_row_stride + (heads * value_head_stride)[:, None] + dims[None, :]
    words = tl.load(source, mask=is_cell)
    cells = (heads * HEAD_DIM)[:, None] + dims[None, :]
    token_words = num_kv_heads * HEAD_DIM
    if page_slot >= 0:
        tl.store(pages + kind * pages_kind_stride + page_slot * token_words + cells, words, mask=is_cell)
    else:
        tl.store(staging + kind * staging_kind_stride + staged_row * token_words + cells, words, mask=is_cell)


@triton.jit
def scatter_kernel(
    rows,  # words [num_rows, WIDTH]
    slots,  # int32 [num_rows]; negative: the row goes nowhere
    destination,  # words [num_slots, WIDTH]
    row_stride,
    WIDTH: tl.constexpr,
    WORDS: tl.constexpr,  # copied together
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    if slot < 0:
        return
    words = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    is_word = words < WIDTH
    tl.store(destination + slot * WIDTH + words, tl.load(rows + row * row_stride + words, mask=is_word), mask=is_word)
