"""The noise of every id of some rows."""

import triton
import triton.language as tl

from dflash_core.sampling.device.kernels.noise import gumbel_like


@triton.jit
def noise_kernel(
    seeds,  # int64 [rows]
    positions,  # int64 [rows]
    noise,  # fp32 [rows, row_stride], out
    row_stride,
    first_group,  # of four ids
    TILE: tl.constexpr,  # ids of one program; row_stride is a multiple of it
):
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    groups = first_group + tile * (TILE // 4) + tl.arange(0, TILE // 4)
    lanes = tl.arange(0, TILE // 4)[:, None] * 4 + tl.arange(0, 4)[None, :]
    zeros = tl.zeros([TILE // 4, 4], tl.float32)
    gumbels = gumbel_like(zeros, tl.load(seeds + row), tl.load(positions + row), groups)
    tl.store(noise + row * row_stride + tile * TILE + lanes, gumbels)
