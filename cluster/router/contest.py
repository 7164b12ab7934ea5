"""`Contest`: which of several ways to do one thing pays most, learned while one of them is in use.

One way leads: the default at first. The others, the challengers, are tried now and then, and each has its *advantage*:
its scores less what the leader scored at about the same time, so that harder work for all moves nothing. What trying
costs is bounded by what is known: a challenger that is clearly worse is tried as rarely as `TRIAL_COST` says, never
not at all, so that a change is noticed. The lead passes on evidence only, and back to the default on less of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dflash_core.errors import InvalidSettings

TRIAL_COST = 0.001
"""Most of the leader's score that one challenger's trials may cost on average, by its advantage as it is known."""

FIRST_TRIALS, LEAST_TRIALS = 0.08, 0.01
"""Shares of all choices that are trials, of all challengers together, where they seem as good: at first, in the end."""

MOST_TRIALS = 0.08
"""The largest share of one challenger's trials: of one that promises more than the leader gives."""

_PROMISE = 3.0  # times more trials for each standard error by which a challenger is better
_TRIALS_HALVE_AFTER = 2000.0  # choices observed, after which there are half as many trials as at first
_TRIALS_OF_NEW_LEADER = 4000.0  # choices, as which those before a change of the lead count

_LEAST_COUNT = 30.0  # observations of a challenger before it may lead
_NEUTRAL_COUNT = 30.0  # observations of no advantage that every challenger starts with
_DEVIATIONS = 2.5  # standard errors by which a challenger's advantage must exceed 0
_LEADER_WINDOW = 200.0  # observations over which the leader's level is taken
_CHALLENGER_WINDOW = 2000.0
_RECENT = 50.0  # observations
_SURPRISE = 3.0  # standard errors of `_RECENT` observations: twice as many of a mean that fades


@dataclass(slots=True)
class Evidence:
    """Mean and variance of what was observed, old observations fading; at once where the recent ones contradict."""

    count: float = 0.0
    mean: float = 0.0
    variance: float = 0.0
    recent: float = 0.0  # mean over `_RECENT`

    def add(self, value: float, window: float) -> None:
        self.count = min(self.count + 1.0, window)
        before = value - self.mean
        self.mean += before / self.count
        self.variance += (before * (value - self.mean) - self.variance) / self.count
        self.recent += (value - self.recent) / min(self.count, _RECENT)
        if abs(self.recent - self.mean) > _SURPRISE * math.sqrt(self.variance / _RECENT):
            self.mean, self.count = self.recent, min(self.count, _RECENT)

    def shift(self, by: float) -> None:
        """What is observed will be larger by so much: the past counts little, as it says so only roughly."""
        self.mean += by
        self.recent += by
        self.count = min(self.count, _LEAST_COUNT)


class SavedEvidence(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    count: float = Field(ge=0.0)
    mean: float
    variance: float = Field(ge=0.0)
    recent: float


class SavedContest(BaseModel):
    """A contest as a file holds it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    arms: Annotated[list[SavedEvidence], Field(min_length=1)]
    leader: int = Field(ge=0)
    level: SavedEvidence
    num_observed: float = Field(ge=0.0)

    @model_validator(mode="after")
    def _leader_is_an_arm(self) -> Self:
        if self.leader >= len(self.arms):
            raise ValueError(f"leader {self.leader} is none of {len(self.arms)} arms")
        return self


@dataclass(slots=True)
class Contest:
    """`arms[i]` holds the advantage over the leader of arm i; arm 0 is the default. `level` is the leader's score."""

    arms: list[Evidence]
    leader: int = 0
    level: Evidence = field(default_factory=Evidence)
    num_observed: float = 0.0

    @classmethod
    def between(cls, num_arms: int) -> Contest:
        """Nothing is known yet, and the default leads."""
        return cls([Evidence() for _ in range(num_arms)])

    def choose(self, draw: Callable[[], float]) -> int:
        """The leader, or the arm to try instead. `draw` gives uniform numbers from [0, 1)."""
        drawn = draw()
        num_challengers = len(self.arms) - 1
        if drawn >= MOST_TRIALS * num_challengers:
            return self.leader
        share = max(LEAST_TRIALS, FIRST_TRIALS / (1.0 + self.num_observed / _TRIALS_HALVE_AFTER)) / num_challengers
        for arm in range(len(self.arms)):
            if arm != self.leader:
                drawn -= self._trials(arm, share)
                if drawn < 0.0:
                    return arm
        return self.leader

    def observe(self, arm: int, score: float) -> None:
        """`score` is positive, the larger the better."""
        self.num_observed += 1.0
        if arm == self.leader:
            self.level.add(score, _LEADER_WINDOW)
        elif self.level.count >= _LEAST_COUNT:
            self.arms[arm].add(score - self.level.mean, _CHALLENGER_WINDOW)
            if self._may_lead(arm):
                self._lead(arm)

    def _trials(self, arm: int, share: float) -> float:
        """The share of choices that are this challenger's trials, instead of `share` where nothing is known of it."""
        gain, error = self._advantage(arm), self._error(arm)
        if gain > 0.0:
            return min(MOST_TRIALS, share * (1.0 + _PROMISE * gain / error)) if error > 0.0 else MOST_TRIALS
        return min(share, TRIAL_COST * self.level.mean / -gain) if gain < 0.0 else share

    def _error(self, arm: int) -> float:
        """The standard error of what was observed of a challenger; 0 before anything was."""
        evidence = self.arms[arm]
        return math.sqrt(evidence.variance / evidence.count) if evidence.count > 0.0 else 0.0

    def _advantage(self, arm: int) -> float:
        """Nearer to 0 than what was observed, the more so the less there is of it."""
        evidence = self.arms[arm]
        return evidence.mean * evidence.count / (evidence.count + _NEUTRAL_COUNT)

    def _may_lead(self, arm: int) -> bool:
        wanted = 0.0 if arm == 0 else _DEVIATIONS * self._error(arm)
        return self.arms[arm].count >= _LEAST_COUNT and self._advantage(arm) > wanted

    def _lead(self, arm: int) -> None:
        """From now on advantages are over this arm: at first what follows from the old ones, soon what is observed."""
        old, gain = self.leader, self._advantage(arm)
        spread = self.arms[arm].variance
        for evidence in self.arms:
            evidence.shift(-gain)
        self.arms[old] = Evidence(_LEAST_COUNT, -gain, spread, -gain)
        self.arms[arm] = Evidence()
        self.leader = arm
        self.level.shift(gain)
        self.num_observed = min(self.num_observed, _TRIALS_OF_NEW_LEADER)

    def as_dict(self) -> dict[str, Any]:
        """What `from_dict` takes."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: object, num_arms: int) -> Contest:
        """Raises `InvalidSettings` for anything that `as_dict` of a contest of `num_arms` did not make."""
        try:
            state = SavedContest.model_validate(saved)
        except ValidationError as error:
            raise InvalidSettings(f"learned contest: {error}") from None
        if len(state.arms) != num_arms:
            raise InvalidSettings(f"learned contest: expected {num_arms} arms, got {len(state.arms)}")
        arms = [Evidence(**arm.model_dump()) for arm in state.arms]
        return cls(arms, state.leader, Evidence(**state.level.model_dump()), state.num_observed)
