"""`noise` in torch, for whole rows of a vocabulary and on any device. int64 holds the unsigned 32-bit words."""

from __future__ import annotations

import torch
from torch import Tensor

from dflash_core.sampling.noise import MULTIPLIER_0, MULTIPLIER_1, NUM_PHILOX_ROUNDS, WEYL_0, WEYL_1

_MASK_32 = 0xFFFFFFFF


def philox_words(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """The random word of every vocabulary id in every row.

    Args:
        seeds: int64 `[rows]`, the bit pattern of the unsigned seeds.
        positions: int64 `[rows]`, of the token being chosen.
    Returns: int64 `[rows, vocab_size]`, each in [0, 2³²).
    """
    num_groups = (vocab_size + 3) // 4
    c0 = torch.arange(num_groups, device=seeds.device, dtype=torch.int64).expand(len(seeds), num_groups)
    c1 = (positions & _MASK_32)[:, None].expand_as(c0)
    c2 = c3 = torch.zeros_like(c0)
    k0, k1 = (seeds & _MASK_32)[:, None], ((seeds >> 32) & _MASK_32)[:, None]
    for _ in range(NUM_PHILOX_ROUNDS):
        # A product of two 32-bit words overflows int64 into the sign, but every bit of it is right.
        product_0, product_1 = c0 * MULTIPLIER_0, c2 * MULTIPLIER_1
        c0, c1, c2, c3 = (
            ((product_1 >> 32) & _MASK_32) ^ c1 ^ k0,
            product_1 & _MASK_32,
            ((product_0 >> 32) & _MASK_32) ^ c3 ^ k1,
            product_0 & _MASK_32,
        )
        k0, k1 = (k0 + WEYL_0) & _MASK_32, (k1 + WEYL_1) & _MASK_32
    return torch.stack((c0, c1, c2, c3), dim=-1).flatten(1)[:, :vocab_size]


def uniform(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """`u` in (0, 1), fp32 `[rows, vocab_size]`; arguments as for `philox_words`."""
    return ((philox_words(seeds, positions, vocab_size) >> 9).float() + 0.5) * 2.0**-23


def gumbel(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """Gumbel(0, 1) noise, fp32 `[rows, vocab_size]`; arguments as for `philox_words`."""
    return -torch.log(-torch.log(uniform(seeds, positions, vocab_size)))
