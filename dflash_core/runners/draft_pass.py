"""What one pass over draft blocks does, and the same for context features. Two of each: for the host, for a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from dflash_core.cache.pools import Slots
from dflash_core.contracts import DraftRanking, SamplingParams, TokenIds
from dflash_core.runners.stages import StageClock
from dflash_core.sampling.arrays import RankingArrays, SamplingArrays


@dataclass(frozen=True, slots=True)
class BlockRows:
    """Draft blocks of one pass: the root of each stands at position context_len, behind its context."""

    root_tokens: npt.NDArray[np.int32]  # [num_blocks]
    context_lens: npt.NDArray[np.int32]  # [num_blocks]
    block_tables: Sequence[npt.NDArray[np.int32]]  # [num_blocks] of context blocks
    sampling: SamplingArrays  # [num_blocks · depth] of the slots 1 …, block after block
    ranking: RankingArrays  # of the same rows

    @classmethod
    def of(
        cls,
        roots: Sequence[int],
        context_lens: Sequence[int],
        block_tables: Sequence[npt.NDArray[np.int32]],
        params: Sequence[SamplingParams],
        rankings: Sequence[DraftRanking],
        depth: int,
    ) -> BlockRows:
        lens = np.array(context_lens, np.int32)
        # Slot i's candidates are for position context_len + i: the noise of that position ranks them.
        positions = lens[:, None] + np.arange(1, depth + 1)
        counts = [depth] * len(params)
        sampling = SamplingArrays.repeated(params, counts, positions.reshape(-1))
        ranking = RankingArrays.repeated(rankings, counts, sampling.temperature)
        return cls(np.array(roots, np.int32), lens, block_tables, sampling, ranking)

    @property
    def num_blocks(self) -> int:
        return len(self.root_tokens)


class DraftPass(Protocol):
    def prepare(self) -> None:
        """Does, once a first pass has run, what no later one should wait for."""
        ...

    def run(self, blocks: BlockRows, clock: StageClock) -> tuple[TokenIds, npt.NDArray[np.float32]]:
        """Candidates and their log-probabilities, `[num_blocks, depth, num_candidates]` each, best first."""
        ...


class ContextWriter(Protocol):
    def prepare(self) -> None:
        """As `DraftPass.prepare`."""
        ...

    def write(self, features: Tensor, positions: npt.NDArray[np.int64], slots: Slots) -> None:
        """Stores keys and values of `features [num_tokens, hidden]`, which are on the CPU, for every draft layer."""
        ...
