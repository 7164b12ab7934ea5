"""Where a round's time goes: named stages, summed in one place."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from cluster.router.clock import now
from cluster.router.timeline import ROUTER, Span, Timeline
from dflash_core.contracts import Drafter, DraftResult, RoundRequest, RoundResult, Target

# The router's own stages. A target's and a drafter's come with their answers, as "target.…" and "drafter.…".
# Work, timed by the machine's clock:
PLAN = "router.plan"  # building trees and the request
COMMIT = "router.commit"  # applying outcomes and handing out tokens
LEARN = "router.learn"  # from what became of the trees, while the drafters are at the next ones
# Waits, timed by the event loop's:
VERIFY = "round.verify"  # request sent until result received
DRAFT = "round.draft"  # draft requests sent until the round goes on
IDLE = "round.idle"  # nothing to do


@dataclass(slots=True)
class StageTime:
    """Sums of one stage since the last reset, in microseconds."""

    count: int = 0
    total_us: int = 0
    max_us: int = 0

    @property
    def mean_us(self) -> float:
        return self.total_us / self.count if self.count else 0.0


@dataclass(slots=True)
class RoundTimings:
    """Sums per stage, and counts that say what a round was made of; a timeline too, where one is given."""

    stages: dict[str, StageTime] = field(default_factory=dict)
    rounds: int = 0
    prefill_tokens: int = 0  # computed
    hit_tokens: int = 0  # not computed, since the prefix cache had them
    tree_sequences: int = 0  # trees verified, counted per sequence and round
    tree_nodes: int = 0  # without roots
    output_tokens: int = 0
    preemptions: int = 0
    expected_tokens: float = 0.0  # of the trees that had a draft, when they were built
    drafted_tokens: int = 0  # that came of them: accepted ones and the bonus tokens
    timeline: Timeline | None = None  # kept by `reset`

    def add(self, stage: str, duration_us: int) -> None:
        entry = self.stages.get(stage)
        if entry is None:
            entry = self.stages[stage] = StageTime()
        entry.count += 1
        entry.total_us += duration_us
        entry.max_us = max(entry.max_us, duration_us)

    def add_all(self, prefix: str, stage_times_us: Mapping[str, int]) -> None:
        for name, duration_us in stage_times_us.items():
            self.add(f"{prefix}.{name}", duration_us)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times work of this process, whatever clock the event loop has."""
        begin_s = 0.0 if self.timeline is None else now()
        begin = time.perf_counter_ns()
        try:
            yield
        finally:
            self.add(name, (time.perf_counter_ns() - begin) // 1000)
            if self.timeline is not None:
                self.timeline.add(ROUTER, ROUTER, Span(name.removeprefix("router."), begin_s, now()))

    @contextmanager
    def wait(self, name: str) -> Iterator[None]:
        """Times waiting for others, by the clock of the running event loop."""
        begin = now()
        try:
            yield
        finally:
            self.add(name, round((now() - begin) * 1e6))

    def verified(
        self, target: Target, micro_batch: int, sent_at: float, request: RoundRequest, result: RoundResult
    ) -> None:
        """A round came back just now. `sent_at`: seconds of the event loop's clock."""
        self.add_all("target", result.stage_times_us)
        if self.timeline is None:
            return
        tree_rows = sum(rows.tree.num_rows for rows in request.trees)
        numbers = {
            "round_id": request.round_id,
            "micro_batch": micro_batch,
            "sequences": len(request.prefills) + len(request.trees),
            "rows": sum(len(prefill.token_ids) for prefill in request.prefills) + tree_rows,
            "nodes": tree_rows - len(request.trees),
            "accepted": sum(outcome.num_accepted for outcome in result.outcomes),
        }
        self.timeline.add("target", target, Span("verify", sent_at, now(), numbers, result.stage_times_us))

    def drafted(self, drafter: Drafter, sent_at: float, done_at: float, result: DraftResult) -> None:
        """A drafter answered. Both times are of the event loop's clock."""
        self.add_all("drafter", result.stage_times_us)
        if self.timeline is not None:
            numbers = {"batch_id": result.batch_id, "blocks": len(result.drafts)}
            self.timeline.add("drafter", drafter, Span("draft", sent_at, done_at, numbers, result.stage_times_us))

    def reset(self) -> None:
        self.stages.clear()
        self.rounds = self.prefill_tokens = self.hit_tokens = 0
        self.tree_sequences = self.tree_nodes = self.output_tokens = self.preemptions = self.drafted_tokens = 0
        self.expected_tokens = 0.0
