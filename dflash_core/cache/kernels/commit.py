"""Moves accepted tree rows of every layer from the staging buffer into pages, in one launch."""

import triton
import triton.language as tl


@triton.jit
def commit_kernel(
    staging,  # words [planes, max_tree_rows, token_words], a plane being one layer's keys or values
    pages,  # words [planes, num_slots, token_words]
    tree_rows,  # int32 or int64 [num_rows]
    slots,  # likewise; negative: the row is not committed
    staging_plane_words,
    pages_plane_words,
    TOKEN_WORDS: tl.constexpr,
    WORDS: tl.constexpr,  # copied together
):
    slot = tl.load(slots + tl.program_id(0)).to(tl.int64)
    if slot < 0:
        return
    row = tl.load(tree_rows + tl.program_id(0)).to(tl.int64)
    plane = tl.program_id(1).to(tl.int64)
    source = staging + plane * staging_plane_words + row * TOKEN_WORDS
    destination = pages + plane * pages_plane_words + slot * TOKEN_WORDS
    for start in range(0, TOKEN_WORDS, WORDS):
        words = start + tl.arange(0, WORDS)
        tl.store(destination + words, tl.load(source + words, mask=words < TOKEN_WORDS), mask=words < TOKEN_WORDS)
