"""What the kernels read of a row: its logits, and which truncations it has."""

import triton
import triton.language as tl


@triton.jit
def load_logits(row_logits, ids, vocab_size):
    """fp32 logits of some ids, −inf from `vocab_size` on."""
    return tl.load(row_logits + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float32)


@triton.jit
def load_all_logits(row_logits, ids, vocab_size, row_width):
    """`load_logits` for whole rows: read to the end of the padding, whose size is round where the vocabulary's is not,
    so that many logits are read at once."""
    logits = tl.load(row_logits + ids, mask=ids < row_width, other=float("-inf")).to(tl.float32)
    return tl.where(ids < vocab_size, logits, float("-inf"))


@triton.jit
def scale(logits, temperature):
    """logits / T, correctly rounded as on the CPU: the order of ids depends on it. A greedy row stays as it is."""
    return tl.math.div_rn(logits, tl.where(temperature == 0.0, 1.0, temperature))


@triton.jit
def has_border(temperature, top_k, top_p, vocab_size):
    """Whether top-k or top-p takes ids from the row."""
    return (temperature > 0.0) & (((top_k > 0) & (top_k < vocab_size)) | (top_p < 1.0))


@triton.jit
def is_truncated(temperature, is_bordered, min_p):
    return is_bordered | ((temperature > 0.0) & (min_p > 0.0))


@triton.jit
def least_distance(min_p):
    """log(min_p): how far below the best a value may lie; −inf without min-p."""
    least = tl.log(tl.where(min_p > 0.0, min_p, 1.0).to(tl.float64)).to(tl.float32)
    return tl.where(min_p > 0.0, least, float("-inf"))
