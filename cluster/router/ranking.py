"""`RankingTuner`: how drafters are asked to rank the candidates of sampled blocks, learned from what targets write.

Where it begins was measured on the embedded pair: acceptance length of trees of 16 nodes by raw scores, at every one of
3,700 to 3,900 roots per setting, and what another ranking changes, ± a standard error over 32 texts:

| sampling                    | noise, c = 2 | without noise  | noise, c = 0 | noise, c = 4 |
|-----------------------------|--------------|----------------|--------------|--------------|
| T 0.3                       |         5.33 |   +0.4 ± 0.3 % |              |              |
| T 0.7                       |         3.91 |   −4.5 ± 0.9 % |              |              |
| T 1                         |         2.67 |  −21.8 ± 1.0 % |              |              |
| T 1.5                       |         2.71 |  −51.3 ± 1.1 % |              |              |
| T 1, top-k 50               |         3.05 |  −11.8 ± 0.9 % | −1.1 ± 0.3 % | −0.4 ± 0.1 % |
| T 1, top-k 5                |         3.36 |   −2.9 ± 0.9 % | −3.8 ± 0.7 % |              |
| T 1, top-p 0.9              |         2.96 |  −11.9 ± 1.1 % | −1.0 ± 0.4 % | −0.6 ± 0.2 % |
| T 1, top-p 0.7              |         3.71 |   −3.3 ± 1.3 % | −2.4 ± 0.8 % |              |
| T 1, top-p 0.5 (two seeds)  |         4.54 |   +1.4 ± 0.6 % | −5.1 ± 0.8 % | −0.3 ± 0.5 % |
| T 0.6, top-k 20, top-p 0.95 |         4.43 |   −0.3 ± 0.7 % | +0.3 ± 0.5 % | −0.7 ± 0.1 % |
| T 0.7, top-k 20, top-p 0.8  |         4.80 |    0.0 ± 0.5 % | −1.5 ± 0.7 % | −1.1 ± 0.2 % |

So noise with c = 2 is the default, but for truncations that leave hardly a choice: there noise can only move drafts
away from it. Nothing else is taken from this pair: other pairs learn from there.
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
    STRONG = 2  # hardly a choice; top-p's limit was measured, those of top-k and min-p go by it

    @classmethod
    def of(cls, sampling: SamplingParams) -> Truncation:
        if 0 < sampling.top_k <= 2 or sampling.top_p <= 0.6 or sampling.min_p >= 0.3:
            return cls.STRONG
        is_truncated = sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0
        return cls.MILD if is_truncated else cls.OFF


_TEMPERATURES = (0.5, 0.9)  # up to the first, up to the second, above: requests of each learn apart
_WITHOUT_NOISE = DraftRanking(uses_noise=False)
_WITHOUT_PENALTY = DraftRanking(truncation_penalty=0.0)
_LARGE_PENALTY = DraftRanking(truncation_penalty=4.0)

# What is tried, the default first. A penalty orders nothing anew where nothing is truncated or no noise is added.
RANKINGS: dict[Truncation, tuple[DraftRanking, ...]] = {
    Truncation.OFF: (DEFAULT_RANKING, _WITHOUT_NOISE),
    Truncation.MILD: (DEFAULT_RANKING, _WITHOUT_NOISE, _WITHOUT_PENALTY, _LARGE_PENALTY),
    Truncation.STRONG: (_WITHOUT_NOISE, DEFAULT_RANKING, _LARGE_PENALTY),
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
    def from_dict(cls, saved: object) -> RankingTuner:
        """Raises `InvalidSettings` for anything that `as_dict` did not make."""
        if not isinstance(saved, dict) or saved.get("form") != _FORM:
            raise InvalidSettings(f"learned rankings must have form {_FORM}, got {saved!r:.80}")
        contests, tuner = saved.get("contests"), cls()
        for truncation, by_temperature in tuner._contests.items():
            name = truncation.name.lower()
            kept = contests.get(name) if isinstance(contests, dict) else None
            if not isinstance(kept, list) or len(kept) != len(by_temperature):
                raise InvalidSettings(f"learned rankings: {len(by_temperature)} contests of truncation {name} expected")
            by_temperature[:] = [Contest.from_dict(contest, len(RANKINGS[truncation])) for contest in kept]
        return tuner
