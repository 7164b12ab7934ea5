"""`SamplingRows`: how the token of each row of a batch is chosen, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dflash_core.contracts import SamplingParams
from dflash_core.sampling.arrays import WHOLE_VOCABULARY, SamplingArrays


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """Parameters of every row, and on the host what the batch needs at all (so that no row must be read back)."""

    temperature: Tensor  # fp32 [rows]; 0 is greedy
    top_k: Tensor  # int32 [rows]; 0 is off
    top_p: Tensor  # fp32 [rows]; 1 is off
    min_p: Tensor  # fp32 [rows]; 0 is off
    seeds: Tensor  # int64 [rows], the bit pattern of unsigned 64-bit seeds
    positions: Tensor  # int64 [rows], of the token being chosen
    any_sampled: bool  # some row has a temperature above 0
    any_truncated: bool  # some such row has top-k, top-p or min-p
    border_width: int  # every row's top-k and top-p border lies among this many best tokens; 0: no row has one

    @property
    def num_rows(self) -> int:
        return len(self.seeds)

    @classmethod
    def of(cls, rows: Sequence[tuple[SamplingParams, int]], device: torch.device | str = "cpu") -> SamplingRows:
        """One `(params, position of the token being chosen)` for each row."""
        params, positions = [params for params, _ in rows], [position for _, position in rows]
        return cls.on(SamplingArrays.repeated(params, [1] * len(rows), positions), device)

    @classmethod
    def on(cls, arrays: SamplingArrays, device: torch.device | str = "cpu") -> SamplingRows:
        """Those rows on a device."""
        is_sampled = arrays.temperature > 0.0
        has_border = is_sampled & ((arrays.top_k > 0) | (arrays.top_p < 1.0))
        border_widths = np.where(arrays.top_k > 0, arrays.top_k, WHOLE_VOCABULARY)[has_border]
        return cls(
            temperature=torch.from_numpy(arrays.temperature).to(device),
            top_k=torch.from_numpy(arrays.top_k).to(device),
            top_p=torch.from_numpy(arrays.top_p).to(device),
            min_p=torch.from_numpy(arrays.min_p).to(device),
            seeds=torch.from_numpy(arrays.seeds).to(device),
            positions=torch.from_numpy(arrays.chosen_positions).to(device),
            any_sampled=bool(is_sampled.any()),
            any_truncated=bool((has_border | (is_sampled & (arrays.min_p > 0.0))).any()),
            border_width=int(border_widths.max(initial=0)),
        )
