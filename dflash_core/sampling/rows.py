"""`SamplingRows`, `RankingRows`: how each row's token is chosen and its candidates are ranked, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dflash_core.contracts import DraftRanking, SamplingParams
from dflash_core.sampling.arrays import RankingArrays, SamplingArrays


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
        params, positions = [params for params, _ in rows], [position for _, position in rows]
        return cls.on(SamplingArrays.repeated(params, [1] * len(rows), positions), device)

    @classmethod
    def on(cls, arrays: SamplingArrays, device: torch.device | str = "cpu") -> SamplingRows:
        """Those rows on a device."""
        return cls(
            temperature=torch.from_numpy(arrays.temperature).to(device),
            top_k=torch.from_numpy(arrays.top_k).to(device),
            top_p=torch.from_numpy(arrays.top_p).to(device),
            min_p=torch.from_numpy(arrays.min_p).to(device),
            seeds=torch.from_numpy(arrays.seeds).to(device),
            positions=torch.from_numpy(arrays.chosen_positions).to(device),
        )


@dataclass(frozen=True, slots=True)
class RankingRows:
    """What a drafter's ranking adds to the parameters of every row. Nothing of it matters in a greedy row."""

    noise_scale: Tensor  # fp32 [rows]: the temperature where the noise ranks, 0 where it does not
    truncation_penalty: Tensor  # fp32 [rows], nats

    @classmethod
    def of(cls, rankings: Sequence[DraftRanking], rows: SamplingRows) -> RankingRows:
        """One ranking for each of `rows`, on their device."""
        temperature = rows.temperature.cpu().numpy()
        return cls.on(RankingArrays.repeated(rankings, [1] * len(rankings), temperature), rows.temperature.device)

    @classmethod
    def on(cls, arrays: RankingArrays, device: torch.device | str = "cpu") -> RankingRows:
        """Those rows on a device."""
        return cls(
            noise_scale=torch.from_numpy(arrays.noise_scale).to(device),
            truncation_penalty=torch.from_numpy(arrays.truncation_penalty).to(device),
        )
