"""Merges the splits of each row: a mean of the partial outputs, weighted by each split's share of the whole sum."""

import triton
import triton.language as tl


@triton.jit
def combine_kernel(
    partial_outputs,  # fp32 [max_partial_rows, num_heads, HEAD_DIM]
    partial_lses,  # fp32 [max_partial_rows, num_heads], base 2
    row_splits,  # int32 [num_rows, 2]
    output,  # [num_rows, num_heads, HEAD_DIM]: rows of one split are already there
    num_heads,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    HEADS: tl.constexpr,  # heads of one program
):
    row = tl.program_id(0)
    num_splits = tl.load(row_splits + row * 2)
    if num_splits == 1:
        return
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    dims = tl.arange(0, PADDED_DIM)
    is_head = heads < num_heads
    cells = is_head[:, None] & (dims < HEAD_DIM)[None, :]
    first_partial = tl.load(row_splits + row * 2 + 1).to(tl.int64)

    highest = tl.full([HEADS], float("-inf"), tl.float32)
    for split in range(num_splits):
        lses = tl.load(partial_lses + (first_partial + split) * num_heads + heads, mask=is_head, other=0.0)
        highest = tl.maximum(highest, lses)
    highest = tl.where(highest == float("-inf"), 0.0, highest)

    total = tl.zeros([HEADS], tl.float32)
    result = tl.zeros([HEADS, PADDED_DIM], tl.float32)
    for split in range(num_splits):
        place = (first_partial + split) * num_heads + heads
        weights = tl.exp2(tl.load(partial_lses + place, mask=is_head, other=0.0) - highest)
        parts = tl.load(partial_outputs + (place * HEAD_DIM)[:, None] + dims[None, :], mask=cells, other=0.0)
        total += weights
        result += parts * weights[:, None]
    # Padding rows have no split: their total is 0, and they become zeros, so that no stale NaN travels on.
    result = result / tl.where(total == 0.0, 1.0, total)[:, None]
    destination = (row * num_heads + heads) * HEAD_DIM
    tl.store(output + destination[:, None] + dims[None, :], result.to(output.dtype.element_ty), mask=cells)
