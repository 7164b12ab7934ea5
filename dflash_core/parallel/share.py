"""`RankShare`: what a pass of one rank needs beyond its modules, which know their group themselves."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dflash_core.sampling.arrays import SamplingArrays
from dflash_core.sampling.rows import SamplingRows
from dflash_core.sampling.sharded import Exchange, VocabularyShard, choose_over_ranks


@dataclass(frozen=True, slots=True)
class RankShare:
    shard: VocabularyShard
    ranks: Exchange

    def choose(self, logits: Tensor, rows: SamplingRows, sampling: SamplingArrays) -> Tensor:
        """As `choose_over_ranks`."""
        return choose_over_ranks(logits, rows, sampling, self.shard, self.ranks)
