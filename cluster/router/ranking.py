"""`RankingTuner`: how drafters are asked to rank the candidates of sampled blocks, learned from what targets write.

MEASURED
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from cluster.router.contest import Contest
from cluster.router.ranking_score import rank_score, warm_up
from dflash_core.contracts import DEFAULT_RANKING, DraftRanking, SamplingParams, TokenIds
from dflash_core.errors import InvalidSettings

_FORM = 1  # of the saved state


class Truncation(IntEnum):
    """How much of the vocabulary top-k, top-p and min-p leave."""

    OFF = 0
    MILD = 1
    STRONG = 2

    @classmethod
    def of(cls, sampling: SamplingParams) -> Truncation:
        if 0 < sampling.top_k <= 10 or sampling.top_p <= 0.85 or sampling.min_p >= 0.1:
            return cls.STRONG
        is_truncated = sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0
        return cls.MILD if is_truncated else cls.OFF


_TEMPERATURES = (0.5, 0.9)  # up to the first, up to the second, above: requests of each learn apart
_WITHOUT_NOISE = DraftRanking(uses_noise=False)
_WITH_PENALTIES = (
    DEFAULT_RANKING,
    DraftRanking(truncation_penalty=0.0),
    DraftRanking(truncation_penalty=4.0),
    _WITHOUT_NOISE,
)

# What is tried, the default first. A penalty orders nothing anew where nothing is truncated or no noise is added.
RANKINGS: dict[Truncation, tuple[DraftRanking, ...]] = {
    Truncation.OFF: (DEFAULT_RANKING, _WITHOUT_NOISE),
    Truncation.MILD: _WITH_PENALTIES,
    Truncation.STRONG: _WITH_PENALTIES,
}


class RankingTuner:
    """One per pair of target and drafter. Nothing here can change a token: only how many come per round."""

    def __init__(self) -> None:
        self._contests = {
            truncation: [Contest.between(len(rankings)) for _ in range(len(_TEMPERATURES) + 1)]
            for truncation, rankings in RANKINGS.items()
        }
        # A fixed seed: routers are the same from run to run. Draws, not turns: those would fall on the same sequences.
        self._draw = random.Random(0).random
        warm_up()

    def choose(self, sampling: SamplingParams) -> DraftRanking:
        """The ranking of the next block of a sequence; most of the time the one that pays best as far as is known."""
        if sampling.is_greedy:
            return DEFAULT_RANKING
        truncation = Truncation.of(sampling)
        contest = self._contests[truncation][bisect_left(_TEMPERATURES, sampling.temperature)]
        return RANKINGS[truncation][contest.choose(self._draw)]

    def observe(
        self,
        sampling: SamplingParams,
        ranking: DraftRanking,
        draft_token_ids: TokenIds,
        committed_tokens: Sequence[int],
    ) -> None:
        """Learns from one round.

        Args:
            ranking: what `choose` said of this block; anything else teaches nothing.
            draft_token_ids: `[depth, K]` best first.
            committed_tokens: what the target wrote after the block's root: those accepted and the one after them, or
                more where more is known.
        """
        if sampling.is_greedy:
            return
        truncation = Truncation.of(sampling)
        rankings = RANKINGS[truncation]
        if ranking in rankings:
            contest = self._contests[truncation][bisect_left(_TEMPERATURES, sampling.temperature)]
            contest.observe(rankings.index(ranking), rank_score(draft_token_ids, committed_tokens))

    def as_dict(self) -> dict[str, Any]:
        """What `from_dict` takes: for keeping what was learned of a pair."""
        contests = {
            truncation.name.lower(): [contest.as_dict() for contest in by_temperature]
            for truncation, by_temperature in self._contests.items()
        }
        return {"form": _FORM, "contests": contests}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> RankingTuner:
        """Raises `InvalidSettings` for anything that `as_dict` did not make."""
        if saved.get("form") != _FORM:
            raise InvalidSettings(f"learned rankings must have form {_FORM}, got {saved.get('form')!r}")
        contests, tuner = saved.get("contests"), cls()
        for truncation, by_temperature in tuner._contests.items():
            name = truncation.name.lower()
            kept = contests.get(name) if isinstance(contests, dict) else None
            if not isinstance(kept, list) or len(kept) != len(by_temperature):
                raise InvalidSettings(f"learned rankings: {len(by_temperature)} contests of truncation {name} expected")
            by_temperature[:] = [Contest.from_dict(contest, len(RANKINGS[truncation])) for contest in kept]
        return tuner
