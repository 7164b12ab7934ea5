"""One cell after another: our arm and the reference's take turns, round by round, on the same trees."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from benchmarks.command import Deadline
from benchmarks.device import free_memory
from benchmarks.limits import Limit, Rates, Work
from benchmarks.random_pair import PairShape, RandomPair
from benchmarks.round.guarded import NO_MEMORY, Guarded
from benchmarks.round.ours import APPENDED, OurDrafter, OurTarget
from benchmarks.round.points import Cell, Round
from benchmarks.round.reference import ReferenceDrafter, ReferenceTarget
from benchmarks.round.timed import Timed
from benchmarks.round.work import drafter_work, target_work
from benchmarks.trees import right_tree, wrong_tree
from dflash_core.contracts import DraftTree

OURS, REFERENCE = ARMS = ("ours", "Hugging Face")
WARM_UPS = 3
NO_TIME = "no time"


@dataclass(frozen=True, slots=True)
class Finding:
    """Medians of one kind of round. `missing` says of an arm without a time why."""

    model: str
    batch: int
    context: int  # at the start; it grows by what the rounds commit
    round: Round | None  # None: the drafter's
    ms: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    stage_ms: dict[str, float] = field(default_factory=dict)  # of ours
    num_accepted: dict[str, float] = field(default_factory=dict)  # draft tokens per sequence and round
    work: Work | None = None
    limit: Limit | None = None

    @property
    def over_limit(self) -> float | None:
        """Times the larger of the two limits."""
        return self.ms[OURS] / self.limit.larger_ms if self.limit and OURS in self.ms else None

    @property
    def over_reference(self) -> float | None:
        """How many times as fast as the reference."""
        return self.ms[REFERENCE] / self.ms[OURS] if len(self.ms) == len(ARMS) else None

    def as_dict(self) -> dict[str, Any]:
        shown = asdict(self)
        shown["round"] = "drafter" if self.round is None else asdict(self.round)
        shown["limit"] = None if self.limit is None else self.limit.as_dict()
        return shown | {"over_limit": self.over_limit, "over_hugging_face": self.over_reference}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and how often."""

    shape: PairShape
    dtype: torch.dtype
    device: torch.device
    repeats: int
    rates: Rates
    deadline: Deadline

    def findings(self, cell: Cell) -> Iterator[Finding]:
        """Of the cell's rounds and of its drafter's. Makes the models anew: what one cell takes, none other lacks."""
        wanted = (*cell.rounds, None)
        free_memory(self.device)
        if self.deadline.is_over:
            yield from (self._missing(cell, round_, NO_TIME) for round_ in wanted)
            return
        done = 0
        try:
            measured = _CellRun(self, cell)
            for round_ in wanted:
                yield self._missing(cell, round_, NO_TIME) if self.deadline.is_over else measured.finding(round_)
                done += 1
        except torch.OutOfMemoryError:
            yield from (self._missing(cell, round_, NO_MEMORY) for round_ in wanted[done:])

    def _missing(self, cell: Cell, round_: Round | None, reason: str) -> Finding:
        return Finding(self.shape.name, cell.batch, cell.context, round_, missing=dict.fromkeys(ARMS, reason))


class _CellRun:
    """The models of one cell, their sequences at its context."""

    def __init__(self, plan: Plan, cell: Cell) -> None:
        """Raises `torch.OutOfMemoryError` where our own arms do not fit."""
        self._plan, self._cell = plan, cell
        largest = max(round_.tree_rows for round_ in cell.rounds)
        num_rounds = plan.repeats + WARM_UPS
        growth = sum(num_rounds * (round_.tree_rows if round_.is_accepted else 1) for round_ in cell.rounds)
        max_model_len = cell.context + max(growth, num_rounds * APPENDED) + largest + plan.shape.draft_block_size
        pair = RandomPair(plan.shape, max_model_len, plan.dtype, plan.device)
        twin, drafter_twin = pair.target_twin(), pair.drafter_twin()  # of what the runners will take over
        batch, context = cell.batch, cell.context
        self._target = OurTarget(pair, batch, context, max_model_len)
        self._drafter = OurDrafter(pair, batch, context, max_model_len)
        self._reference = Guarded(
            plan.device, lambda: ReferenceTarget(pair, twin, batch, context, max_model_len, largest)
        )
        self._reference_drafter = Guarded(plan.device, lambda: ReferenceDrafter(pair, drafter_twin, batch, context))
        self._rng = np.random.default_rng(1)

    def finding(self, round_: Round | None) -> Finding:
        times: dict[str, list[Timed]] = {arm: [] for arm in ARMS}
        for repeat in range(-WARM_UPS, self._plan.repeats):
            for arm, timed in self._turn(round_).items():
                if repeat >= 0 and timed is not None:
                    times[arm].append(timed)
        return self._summary(round_, times)

    def _turn(self, round_: Round | None) -> dict[str, Timed | None]:
        """One round of each arm; None where it is not there."""
        if round_ is None:
            return {OURS: self._drafter.run(), REFERENCE: self._reference_drafter.call(ReferenceDrafter.run)}
        trees = [self._tree(round_, root) for root in self._target.roots]
        ours = self._target.run(round_, trees)
        return {OURS: ours, REFERENCE: self._reference.call(lambda arm: arm.run(round_, trees))}

    def _tree(self, round_: Round, root: int) -> DraftTree:
        shape = self._plan.shape
        if round_.is_accepted:
            return right_tree(root, round_.tree_rows, shape.successor)
        depth = shape.draft_block_size - 1
        return wrong_tree(self._rng, root, round_.tree_rows, depth, shape.vocab_size, shape.successor)

    def _summary(self, round_: Round | None, times: dict[str, list[Timed]]) -> Finding:
        plan, cell = self._plan, self._cell
        complete = {arm: timed for arm, timed in times.items() if len(timed) == plan.repeats}
        ours = complete[OURS]
        context = statistics.fmean(timed.context for timed in ours)
        accepted = {arm: statistics.fmean(timed.num_accepted for timed in mine) for arm, mine in complete.items()}
        if round_ is None:
            work = drafter_work(plan.shape, plan.dtype, cell.batch, context, APPENDED)
        else:
            work = target_work(plan.shape, plan.dtype, cell, round_, context, accepted[OURS])
        reference = self._reference_drafter if round_ is None else self._reference
        return Finding(
            model=plan.shape.name,
            batch=cell.batch,
            context=cell.context,
            round=round_,
            ms={arm: statistics.median(timed.ms for timed in mine) for arm, mine in complete.items()},
            missing={} if reference.failure is None else {REFERENCE: reference.failure},
            stage_ms=_stages(ours),
            num_accepted={} if round_ is None else {arm: count / cell.batch for arm, count in accepted.items()},
            work=work,
            limit=work.limit(plan.rates),
        )


def _stages(ours: Sequence[Timed]) -> dict[str, float]:
    return {name: statistics.median(timed.stage_us.get(name, 0) for timed in ours) / 1e3 for name in ours[0].stage_us}
