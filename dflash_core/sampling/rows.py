"""`SamplingRows`: how the token of each row of a batch is chosen, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dflash_core.contracts import SamplingParams

# Below this temperature the noise is smaller than the rounding of a logit, and logits / T may overflow: greedy.
LEAST_TEMPERATURE = 1e-5

_WHOLE_VOCABULARY = 2**31 - 1


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """Parameters of every row."""

    temperature: Tensor  # fp32 [rows]; 0 is greedy
    top_k: Tensor  # int32 [rows]; 0 is off
    top_p: Tensor  # fp32 [rows]; 1 is off
    min_p: Tensor  # fp32 [rows]; 0 is off
    seeds: Tensor  # int64 [rows], the bit pattern of unsigned 64-bit seeds
    positions: Tensor  # int64 [rows], of the token being chosen

    @property
    def num_rows(self) -> int:
        return len(self.seeds)

    @classmethod
    def of(cls, rows: Sequence[tuple[SamplingParams, int]], device: torch.device | str = "cpu") -> SamplingRows:
        """One `(params, position of the token being chosen)` for each row."""
        temperatures = [p.temperature if p.temperature >= LEAST_TEMPERATURE else 0.0 for p, _ in rows]
        seeds = np.array([p.seed for p, _ in rows], dtype=np.uint64).view(np.int64)
        return cls(
            temperature=torch.tensor(temperatures, dtype=torch.float32, device=device),
            top_k=torch.tensor([min(p.top_k, _WHOLE_VOCABULARY) for p, _ in rows], dtype=torch.int32, device=device),
            top_p=torch.tensor([p.top_p for p, _ in rows], dtype=torch.float32, device=device),
            min_p=torch.tensor([p.min_p for p, _ in rows], dtype=torch.float32, device=device),
            seeds=torch.from_numpy(seeds).to(device),
            positions=torch.tensor([position for _, position in rows], dtype=torch.int64, device=device),
        )
