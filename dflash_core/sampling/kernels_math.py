"""Arithmetic of the numba kernels: the noise, and logarithm and exponential that LLVM can turn into vector code.

These are fixed by known answers.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dflash_core.jit import jit
from dflash_core.sampling.noise import MULTIPLIER_0, MULTIPLIER_1, NUM_PHILOX_ROUNDS, WEYL_0, WEYL_1

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint32]

CHUNK = 64  # ids worked on together; a multiple of 4

_MASK_32 = np.uint64(0xFFFFFFFF)
_M0, _M1 = np.uint64(MULTIPLIER_0), np.uint64(MULTIPLIER_1)
_W0, _W1 = np.uint64(WEYL_0), np.uint64(WEYL_1)
_HALF, _U_STEP = np.float32(0.5), np.float32(2.0**-23)

_SQRT_HALF_BITS = np.int32(0x3F3504F3)
_LN_2_HIGH, _LN_2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
# log(1 + f) = f − f²/2 + f³·P(f) for f in [√½ − 1, √2 − 1]: the coefficients of Cephes' logf.
_L0, _L1, _L2 = np.float32(7.0376836292e-2), np.float32(-1.1514610310e-1), np.float32(1.1676998740e-1)
_L3, _L4, _L5 = np.float32(-1.2420140846e-1), np.float32(1.4249322787e-1), np.float32(-1.6668057665e-1)
_L6, _L7, _L8 = np.float32(2.0000714765e-1), np.float32(-2.4999993993e-1), np.float32(3.3333331174e-1)
# 2^f for f in [−½, ½]: its Taylor series, ln(2)^k / k!.
_LOG2_E, _LEAST_EXPONENT = np.float32(1.4426950408889634), np.float32(-100.0)
_E1, _E2, _E3 = np.float32(0.6931471805599453), np.float32(0.2402265069591007), np.float32(0.05550410866482158)
_E4, _E5, _E6 = np.float32(0.009618129107628477), np.float32(0.0013333558146428443), np.float32(1.5403530393381608e-4)
_ONE = np.float32(1.0)


def _noise_bounds() -> Floats:
    """Upper bounds of the fp32 noise: [0, 256) by the word's top 8 bits; where these are all set, [256, 512) by the
    next 8. The margin 1e-5 is ten times the rounding error of two fp32 logarithms."""
    top = np.concatenate([(np.arange(256) << 15) + 0x7FFF, (255 << 15) + (np.arange(256) << 7) + 0x7F])
    return (-np.log(-np.log((top + 0.5) * 2.0**-23)) + 1e-5).astype(np.float32)


NOISE_BOUNDS = _noise_bounds()
MOST_NOISE = np.float32(NOISE_BOUNDS[511])


@jit
def fill_words(seed: int, position: int, first_id: int, words: Words) -> None:
    """Philox words of the ids first_id … first_id + CHUNK − 1; first_id is a multiple of 4."""
    first_group = first_id // 4
    for i in range(CHUNK // 4):
        c0, c1 = np.uint64(first_group + i), np.uint64(position) & _MASK_32
        c2, c3 = np.uint64(0), np.uint64(0)
        k0, k1 = np.uint64(seed) & _MASK_32, np.uint64(seed) >> np.uint64(32)
        for _ in range(NUM_PHILOX_ROUNDS):
            product_0, product_1 = c0 * _M0, c2 * _M1
            c0 = (product_1 >> np.uint64(32)) ^ c1 ^ k0
            c1 = product_1 & _MASK_32
            c2 = (product_0 >> np.uint64(32)) ^ c3 ^ k1
            c3 = product_0 & _MASK_32
            k0, k1 = (k0 + _W0) & _MASK_32, (k1 + _W1) & _MASK_32
        words[4 * i] = c0
        words[4 * i + 1] = c1
        words[4 * i + 2] = c2
        words[4 * i + 3] = c3


@jit
def gumbel_of(word: np.uint32) -> np.float32:
    uniform = (np.float32(word >> np.uint32(9)) + _HALF) * _U_STEP
    return -np.float32(math.log(-np.float32(math.log(uniform))))


@jit
def gumbel_row(seed: int, position: int, vocab_size: int) -> Floats:
    """The noise of one row as these kernels see it, fp32 `[vocab_size]`; for tests against the reference."""
    words = np.empty(CHUNK, np.uint32)
    noise = np.empty(vocab_size, np.float32)
    for i in range(vocab_size):
        if i % CHUNK == 0:
            fill_words(seed, position, i, words)
        noise[i] = gumbel_of(words[i % CHUNK])
    return noise


@jit
def minus_log(values: Floats, exponents: npt.NDArray[np.int32], mantissas: Floats) -> None:
    """Replaces positive normal `values` `[CHUNK]` by −log, to about 1 ulp; the other two are scratch `[CHUNK]`."""
    bits, mantissa_bits = values.view(np.int32), mantissas.view(np.int32)
    for i in range(CHUNK):
        exponents[i] = (bits[i] - _SQRT_HALF_BITS) >> np.int32(23)
        mantissa_bits[i] = bits[i] - (exponents[i] << np.int32(23))
    for i in range(CHUNK):
        f, e = mantissas[i] - _ONE, np.float32(exponents[i])
        p = (((((((_L0 * f + _L1) * f + _L2) * f + _L3) * f + _L4) * f + _L5) * f + _L6) * f + _L7) * f + _L8
        square = f * f
        values[i] = -((f + (f * square * p + e * _LN_2_LOW - _HALF * square)) + e * _LN_2_HIGH)


@jit
def gumbel_chunk(words: Words, noise: Floats, exponents: npt.NDArray[np.int32], mantissas: Floats) -> None:
    """The noise of CHUNK words, within a few ulp of `gumbel_of`; the last two are scratch `[CHUNK]`."""
    for i in range(CHUNK):
        noise[i] = (np.float32(np.int32(words[i] >> np.uint32(9))) + _HALF) * _U_STEP
    minus_log(noise, exponents, mantissas)
    minus_log(noise, exponents, mantissas)


@jit
def sum_of_exp(values: Floats, shift: np.float32) -> float:
    """Σ exp(value − shift) over a whole number of chunks whose values are at most `shift`; NaN counts as nothing."""
    sums = np.zeros(CHUNK, np.float64)
    series = np.empty(CHUNK, np.float32)
    power_bits = np.empty(CHUNK, np.int32)
    powers = power_bits.view(np.float32)
    for start in range(0, len(values), CHUNK):
        chunk = values[start : start + CHUNK]
        for i in range(CHUNK):
            t = (chunk[i] - shift) * _LOG2_E
            t = t if t > _LEAST_EXPONENT else _LEAST_EXPONENT
            whole = np.int32(t - _HALF)  # towards 0, and t ≤ 0: the nearest integer
            f = t - np.float32(whole)
            series[i] = (((((_E6 * f + _E5) * f + _E4) * f + _E3) * f + _E2) * f + _E1) * f + _ONE
            power_bits[i] = (whole + np.int32(127)) << np.int32(23)
        for i in range(CHUNK):
            sums[i] += np.float64(series[i] * powers[i])
    return float(sums.sum())
