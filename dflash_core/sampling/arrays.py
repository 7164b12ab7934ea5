"""How the token of each row is chosen, and how a drafter ranks the candidates for it, as arrays of the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dflash_core.contracts import DraftRanking, SamplingParams

# Below this temperature the noise is smaller than the rounding of a logit, and logits / T may overflow: greedy.
LEAST_TEMPERATURE = 1e-5

WHOLE_VOCABULARY = 2**31 - 1

# The fields of `SamplingArrays`, in the order in which the device's operators take them.
SAMPLING_ARRAYS: dict[str, type[np.generic]] = {
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "min_p": np.float32,
    "seeds": np.int64,
    "chosen_positions": np.int64,
}

# The fields of `RankingArrays`, in the order in which the device's operator takes them.
RANKING_ARRAYS: dict[str, type[np.generic]] = {"noise_scale": np.float32, "truncation_penalty": np.float32}


@dataclass(frozen=True, slots=True)
class SamplingArrays:
    temperature: npt.NDArray[np.float32]  # [rows]; 0 is greedy
    top_k: npt.NDArray[np.int32]  # [rows]; 0 is off
    top_p: npt.NDArray[np.float32]  # [rows]; 1 is off
    min_p: npt.NDArray[np.float32]  # [rows]; 0 is off
    seeds: npt.NDArray[np.int64]  # [rows], the bit pattern of unsigned 64-bit seeds
    chosen_positions: npt.NDArray[np.int64]  # [rows], of the token being chosen

    @classmethod
    def repeated(
        cls, params: Sequence[SamplingParams], counts: Sequence[int] | npt.NDArray[np.integer], positions: npt.ArrayLike
    ) -> SamplingArrays:
        """Each of `params` for as many rows as `counts` says; `positions [rows]` are those of the tokens chosen."""
        each = [(p.temperature, min(p.top_k, WHOLE_VOCABULARY), p.top_p, p.min_p) for p in params]
        columns = np.array(each, np.float64).reshape(-1, 4).T
        temperature = columns[0].astype(np.float32)
        temperature[columns[0] < LEAST_TEMPERATURE] = 0.0
        seeds = np.array([p.seed for p in params], np.uint64).view(np.int64)
        return cls(
            temperature=np.repeat(temperature, counts),
            top_k=np.repeat(columns[1].astype(np.int32), counts),
            top_p=np.repeat(columns[2].astype(np.float32), counts),
            min_p=np.repeat(columns[3].astype(np.float32), counts),
            seeds=np.repeat(seeds, counts),
            chosen_positions=np.asarray(positions, np.int64),
        )


@dataclass(frozen=True, slots=True)
class RankingArrays:
    noise_scale: npt.NDArray[np.float32]  # [rows]: the temperature where the noise ranks, 0 where it does not
    truncation_penalty: npt.NDArray[np.float32]  # [rows], nats

    @classmethod
    def repeated(
        cls,
        rankings: Sequence[DraftRanking],
        counts: Sequence[int] | npt.NDArray[np.integer],
        temperature: npt.NDArray[np.float32],
    ) -> RankingArrays:
        """Each of `rankings` for as many rows as `counts` says; `temperature [rows]` as in `SamplingArrays`."""
        uses_noise = np.array([r.uses_noise for r in rankings], np.bool_)
        penalties = np.array([r.truncation_penalty for r in rankings], np.float32)
        noise_scale = np.where(np.repeat(uses_noise, counts), temperature, np.float32(0.0))
        return cls(noise_scale, np.repeat(penalties, counts))


def fill_sampling(host: Mapping[str, npt.NDArray[Any]], arrays: SamplingArrays, size: int) -> None:
    """Writes `arrays` into arrays of the same names, and up to `size` rows that are greedy."""
    for name in SAMPLING_ARRAYS:
        values = getattr(arrays, name)
        host[name][: len(values)] = values
        host[name][len(values) : size] = 1 if name == "top_p" else 0


def fill_ranking(host: Mapping[str, npt.NDArray[Any]], arrays: RankingArrays, size: int) -> None:
    """Writes `arrays` into arrays of the same names, and zeros up to `size` rows."""
    for name in RANKING_ARRAYS:
        values = getattr(arrays, name)
        host[name][: len(values)] = values
        host[name][len(values) : size] = 0
