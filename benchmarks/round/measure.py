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
from benchmarks.round.ours import APPENDED, KV_BLOCK_SIZE, OurDrafter, OurTarget
from benchmarks.round.points import Cell, Round
from benchmarks.round.reference import ReferenceDrafter, ReferenceTarget
from benchmarks.round.timed import Timed
from benchmarks.round.work import drafter_work, target_work, token_numbers
from benchmarks.trees import right_tree, wrong_tree
from dflash_core.contracts import DraftTree

OURS, REFERENCE = ARMS = ("ours", "Hugging Face")
WARM_UPS = 3
NO_TIME = "no time"
_SHARED_MEMORY = 0.3  # of the device, for keys, values and features: beyond, a cell has runners of its own


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

    def findings(self, cells: Sequence[Cell]) -> Iterator[Finding]:
        """Of every cell's rounds and of its drafter's. Cells share runners, which take a while to make, but for those
        so large that others would lack the memory."""
        shared_bytes = _SHARED_MEMORY * _total_bytes(self.device)
        small = [cell for cell in cells if self._pool_bytes(cell) <= shared_bytes]
        for group in ([small] if small else []) + [[cell] for cell in cells if cell not in small]:
            yield from self._of_group(group)

    def _of_group(self, cells: Sequence[Cell]) -> Iterator[Finding]:
        free_memory(self.device)
        torch.compiler.reset()  # code compiled for runners that are gone
        if self.deadline.is_over:
            yield from (found for cell in cells for found in self._missing(cell, NO_TIME))
            return
        try:
            if max(map(self._pool_bytes, cells)) > _total_bytes(self.device):
                raise torch.OutOfMemoryError
            models = _Models(self, cells)
        except torch.OutOfMemoryError:
            yield from (found for cell in cells for found in self._missing(cell, NO_MEMORY))
            return
        for cell in cells:
            yield from self._of_cell(models, cell)

    def _of_cell(self, models: _Models, cell: Cell) -> Iterator[Finding]:
        free_memory(self.device)
        missing = self._missing(cell, NO_TIME)
        if self.deadline.is_over:
            yield from missing
            return
        done = 0
        try:
            run = _CellRun(self, models, cell)
            for late in missing:
                yield late if self.deadline.is_over else run.finding(late.round)
                done += 1
        except torch.OutOfMemoryError:
            yield from self._missing(cell, NO_MEMORY)[done:]

    def _missing(self, cell: Cell, reason: str) -> list[Finding]:
        """What could not be measured, in the order in which it would have been."""
        return [
            Finding(self.shape.name, cell.batch, cell.context, round_, missing=dict.fromkeys(ARMS, reason))
            for round_ in (*cell.rounds, None)
        ]

    def longest(self, cell: Cell) -> int:
        """Tokens that a sequence of the cell can come to have."""
        num_rounds = self.repeats + WARM_UPS
        grown = sum(num_rounds * (round_.tree_rows if round_.is_accepted else 1) for round_ in cell.rounds)
        largest = max(round_.tree_rows for round_ in cell.rounds)
        return cell.context + max(grown, num_rounds * APPENDED) + largest + self.shape.draft_block_size

    def _pool_bytes(self, cell: Cell) -> int:
        """Keys, values and features of the cell's sequences on the target."""
        numbers = token_numbers(self.shape, self.shape.num_layers) + self.shape.hidden_size
        return cell.batch * self.longest(cell) * numbers * self.dtype.itemsize


class _Models:
    """Runners with room for each of the cells, and what the reference runs."""

    def __init__(self, plan: Plan, cells: Sequence[Cell]) -> None:
        """Raises `torch.OutOfMemoryError`."""
        max_model_len = max(map(plan.longest, cells))
        num_tokens = max(cell.batch * (plan.longest(cell) + KV_BLOCK_SIZE) for cell in cells)
        self.pair = RandomPair(plan.shape, max_model_len, plan.dtype, plan.device)
        # Twins of what the runners are about to take over.
        self.twin, self.drafter_twin = self.pair.target_twin(), self.pair.drafter_twin()
        self.target = OurTarget(self.pair, max(num_tokens, max_model_len), max_model_len)
        self.drafter = OurDrafter(self.pair, num_tokens)


class _CellRun:
    """The sequences of one cell, on every arm."""

    def __init__(self, plan: Plan, models: _Models, cell: Cell) -> None:
        """Raises `torch.OutOfMemoryError` where our own arms do not fit."""
        self._plan, self._cell = plan, cell
        self._target, self._drafter = models.target, models.drafter
        sizes = (cell.batch, cell.context)
        self._target.start(*sizes)
        self._drafter.start(*sizes)
        pair, twin, drafter_twin = models.pair, models.twin, models.drafter_twin
        largest = max(round_.tree_rows for round_ in cell.rounds)
        longest = plan.longest(cell)
        self._reference = Guarded(plan.device, lambda: ReferenceTarget(pair, twin, *sizes, longest, largest))
        self._reference_drafter = Guarded(plan.device, lambda: ReferenceDrafter(pair, drafter_twin, *sizes))
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


def _total_bytes(device: torch.device) -> float:
    """Of a GPU's memory; a CPU's is not asked."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else float("inf")
