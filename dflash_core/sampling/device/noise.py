"""The noise as a tensor, for ranks that have a part of the vocabulary each."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from dflash_core.sampling.device.kernels.noise_rows import noise_kernel

TILE = 1024  # ids


def noise_of_ids(seeds: Tensor, positions: Tensor, first_id: int, num_ids: int) -> Tensor:
    """The fp32 noise `[rows, num_ids]` of the ids `first_id` …; `seeds` and `positions` are int64 `[rows]`."""
    lead = first_id % 4  # ids share a random block by four
    width = triton.cdiv(lead + num_ids, TILE) * TILE
    noise = torch.empty(len(seeds), width, dtype=torch.float32, device=seeds.device)
    noise_kernel[(len(seeds), width // TILE)](
        seeds, positions, noise, width, first_id // 4, TILE=TILE, num_warps=4, enable_fp_fusion=False
    )
    return noise[:, lead : lead + num_ids]
