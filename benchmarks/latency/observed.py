"""A target and a drafter as the router sees them, with a stopwatch: what each round and draft took, and what was
expected of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cluster.router.latency import DraftTimeModel, RoundLoad, RoundTimeModel
from dflash_core.contracts import (
    Drafter,
    DrafterInfo,
    DraftRequest,
    DraftResult,
    RoundRequest,
    RoundResult,
    Target,
    TargetInfo,
)


@dataclass(frozen=True, slots=True)
class TimedRound:
    load: RoundLoad
    seconds: float
    expected: float  # by the model before it saw this round
    concurrency: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TimedDraft:
    num_blocks: int
    seconds: float
    expected: float
    expected_p95: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True, eq=False)
class ObservedTarget:
    """Implements `Target`. Every round first is predicted, then teaches the model."""

    target: Target
    concurrency: int = 0  # noted with each round
    rounds: list[TimedRound] = field(default_factory=list)
    model: RoundTimeModel = field(init=False)

    def __post_init__(self) -> None:
        self.model = RoundTimeModel(self.info.row_sizes, self.info.round_times_us)

    @property
    def info(self) -> TargetInfo:
        return self.target.info

    async def run_round(self, request: RoundRequest) -> RoundResult:
        begin = time.perf_counter()
        result = await self.target.run_round(request)
        seconds = time.perf_counter() - begin
        load = RoundLoad.done(request, result)
        if load.num_rows:
            self.rounds.append(TimedRound(load, seconds, self.model.seconds(load), self.concurrency))
            self.model.observe(load, seconds)
        return result


@dataclass(slots=True, eq=False)
class ObservedDrafter:
    """Implements `Drafter`, likewise."""

    drafter: Drafter
    drafts: list[TimedDraft] = field(default_factory=list)
    model: DraftTimeModel = field(init=False)

    def __post_init__(self) -> None:
        self.model = DraftTimeModel(self.info.draft_times_us)

    @property
    def info(self) -> DrafterInfo:
        return self.drafter.info

    async def draft(self, request: DraftRequest) -> DraftResult:
        begin = time.perf_counter()
        result = await self.drafter.draft(request)
        seconds = time.perf_counter() - begin
        count = len(request.blocks)
        if count:
            model = self.model
            self.drafts.append(TimedDraft(count, seconds, model.seconds(count), model.quantile(count, 0.95)))
            model.observe(count, seconds)
        return result


def median_error(steps: Sequence[TimedRound | TimedDraft]) -> float:
    """Of what was expected, relative to what a step took."""
    return statistics.median(abs(step.expected / step.seconds - 1.0) for step in steps)
