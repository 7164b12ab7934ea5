"""placeholder"""

from __future__ import annotations

from dflash_core.contracts import DEFAULT_RANKING, DraftRanking, SamplingParams


class RankingTuner:
    def choose(self, sampling: SamplingParams) -> DraftRanking:
        return DEFAULT_RANKING

    def observe(self, sampling, ranking, ids, tokens): ...
