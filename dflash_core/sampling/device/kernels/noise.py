"""`dflash_core.sampling.noise` in Triton: words and `u` bit for bit, the logarithms up to their last bit."""

import triton
import triton.language as tl

from dflash_core.sampling.kernels_math import MOST_NOISE as _MOST_NOISE
from dflash_core.sampling.noise import MULTIPLIER_0, MULTIPLIER_1, NUM_PHILOX_ROUNDS, WEYL_0, WEYL_1

M0, M1 = tl.constexpr(MULTIPLIER_0), tl.constexpr(MULTIPLIER_1)
W0, W1 = tl.constexpr(WEYL_0), tl.constexpr(WEYL_1)
NUM_ROUNDS = tl.constexpr(NUM_PHILOX_ROUNDS)
MOST_NOISE = tl.constexpr(float(_MOST_NOISE))  # above all noise


@triton.jit
def _gumbel_of(words):
    u = ((words >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2^-23
    return -tl.log(-tl.log(u))


@triton.jit
def words_of_groups(seed, position, groups):
    """The uint32 words of ids 4·group, …, 4·group + 3, each of the shape of the int32 `groups`."""
    c0 = groups.to(tl.uint32)
    c1 = position.to(tl.uint32)
    c2 = c1 * 0
    c3 = c2
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(NUM_ROUNDS):
        # Both halves of a product by one instruction, where `tl.philox` takes one for each.
        product_0 = c0.to(tl.uint64) * M0
        product_1 = c2.to(tl.uint64) * M1
        c0 = (product_1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = product_1.to(tl.uint32)
        c2 = (product_0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = product_0.to(tl.uint32)
        k0 += W0
        k1 += W1
    return c0, c1, c2, c3


@triton.jit
def gumbel_like(values, seed, position, groups):
    """The noise of four ids per group, in the shape of `values`, which are those of the ids in their order."""
    w0, w1, w2, w3 = words_of_groups(seed, position, groups)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # [..., i, j] is word 2·i + j
    return tl.reshape(_gumbel_of(words), values.shape)


@triton.jit
def gumbel_of_id(seed, position, vocab_id):
    """The noise of one id."""
    w0, w1, w2, w3 = words_of_groups(seed, position, vocab_id // 4)
    lane = vocab_id % 4
    return _gumbel_of(tl.where(lane < 2, tl.where(lane == 0, w0, w1), tl.where(lane == 2, w2, w3)))
