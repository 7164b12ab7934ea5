"""The noise that every random choice uses: Philox4x32-10 keyed by (seed, position, vocabulary id). The reference.

Philox: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011), section 3.3.
`kernels_math` and `device.kernels.noise` state the same in numba and Triton: words and `u` bit for bit, the two
logarithms up to their last bit.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import numpy.typing as npt

from dflash_core.errors import InvalidRequest

MULTIPLIER_0 = 0xD2511F53
MULTIPLIER_1 = 0xCD9E8D57
WEYL_0 = 0x9E3779B9
WEYL_1 = 0xBB67AE85
NUM_PHILOX_ROUNDS = 10

_MASK_32 = np.uint64(0xFFFFFFFF)
_SHIFT_32 = np.uint64(32)


def philox_4x32_10(counter: npt.NDArray[np.uint32], key: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Four random words for each counter.

    Args:
        counter: `[..., 4]`.
        key: `[..., 2]`, broadcast against `counter` without the last axis.
    Returns: `[..., 4]`.
    """
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = (key[..., i].astype(np.uint64) for i in range(2))
    for _ in range(NUM_PHILOX_ROUNDS):
        product_0 = c0 * np.uint64(MULTIPLIER_0)
        product_1 = c2 * np.uint64(MULTIPLIER_1)
        c0, c1, c2, c3 = (
            (product_1 >> _SHIFT_32) ^ c1 ^ k0,
            product_1 & _MASK_32,
            (product_0 >> _SHIFT_32) ^ c3 ^ k1,
            product_0 & _MASK_32,
        )
        k0 = (k0 + np.uint64(WEYL_0)) & _MASK_32
        k1 = (k1 + np.uint64(WEYL_1)) & _MASK_32
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), axis=-1).astype(np.uint32)


def uniform(seed: int, position: int, vocab_ids: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
    """`u` in (0, 1), exact in fp32: 23 random bits and a half.

    Args:
        seed: unsigned 64 bits.
        position: of the token being chosen, from 0 at the first prompt token.
        vocab_ids: any shape; the result has the same.
    """
    ids = np.asarray(vocab_ids, dtype=np.int64)
    counter = np.zeros((*ids.shape, 4), dtype=np.uint32)
    counter[..., 0] = ids // 4
    counter[..., 1] = position
    key = np.array([seed & 0xFFFFFFFF, seed >> 32], dtype=np.uint32)
    words = np.take_along_axis(philox_4x32_10(counter, key), (ids % 4)[..., None], axis=-1)[..., 0]
    return ((words >> np.uint32(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)


def gumbel(seed: int, position: int, vocab_ids: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
    """Gumbel(0, 1) noise `-log(-log(u))` in fp32, of the shape of `vocab_ids`; between −2.82 and 16.64."""
    noise: npt.NDArray[np.float32] = -np.log(-np.log(uniform(seed, position, vocab_ids)))
    return noise


def output_seed(request_seed: int, prompt_index: int, choice_index: int) -> int:
    """The unsigned 64-bit seed of one output of a request; the same on every machine and in every version.

    A negative `request_seed` means its two's complement. Raises `InvalidRequest` beyond 64 bits.
    """
    if not -(2**63) <= request_seed < 2**64:
        raise InvalidRequest(f"seed must fit in 64 bits, got {request_seed}", param="seed")
    message = struct.pack("<QQQ", request_seed % 2**64, prompt_index, choice_index)
    return int.from_bytes(hashlib.blake2b(message, digest_size=8, person=b"dflash-seed").digest(), "little")
