"""The *draft* stage: announces newcomers to their drafters and fetches the next blocks of the others."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Protocol

from cluster.router.links import DrafterLink, TargetLink
from cluster.router.sequence import Phase, Sequence
from cluster.router.settings import RouterSettings
from cluster.router.timings import RoundTimings
from cluster.router.tree_planner import TreePlanner
from dflash_core.contracts import Draft, DraftBlock, DraftRequest, DraftResult, SequenceKey
from dflash_core.errors import Unavailable

logger = logging.getLogger(__name__)

_MOST_SKIPPED_ROUNDS = 15


class DrafterPool(Protocol):
    """The part of the router that this stage needs."""

    def choose_drafter(self, target: TargetLink) -> DrafterLink | None: ...

    def drafter_lost(self, link: DrafterLink, reason: str) -> None: ...

    @property
    def num_waiting(self) -> int: ...


@dataclass(slots=True)
class _Order:
    """What goes to one drafter in this stage, and whose drafts come back."""

    opens: list[tuple[SequenceKey, int]] = field(default_factory=list)
    blocks: list[DraftBlock] = field(default_factory=list)
    sequences: dict[SequenceKey, Sequence] = field(default_factory=dict)


@dataclass(slots=True)
class _InFlight:
    task: asyncio.Task[DraftResult]
    order: _Order


class DraftStage:
    """One per round loop. At most one request is in flight per drafter: a straggler is not sent more work.

    What a drafter answers never changes a token; it changes how many come per round.
    """

    def __init__(
        self,
        target: TargetLink,
        pool: DrafterPool,
        planner: TreePlanner,
        settings: RouterSettings,
        timings: RoundTimings,
    ) -> None:
        self._target = target
        self._pool = pool
        self._planner = planner
        self._settings = settings
        self._timings = timings
        self._in_flight: dict[DrafterLink, _InFlight] = {}

    async def run(self) -> None:
        """Returns once every drafter asked now has answered, or `draft_timeout_ms` is over."""
        self._collect_finished()
        awaited = [self._send(link, order) for link, order in self._orders().items()]
        if awaited:
            await asyncio.wait(awaited, timeout=self._settings.draft_timeout_ms / 1e3)
            self._collect_finished()

    def close(self) -> None:
        """What is on its way goes on: it may carry releases."""
        for link, entry in self._in_flight.items():
            link.let_finish(entry.task)
        self._in_flight.clear()

    # --- asking

    def _orders(self) -> dict[DrafterLink, _Order]:
        orders: dict[DrafterLink, _Order] = {}
        for sequence in self._target.sequences:
            self._settle_drafter(sequence)
            sequence.is_announced = True
            link = sequence.drafter
            if link is None or link in self._in_flight:
                continue
            if not sequence.drafter_knows:
                self._open(sequence, orders.setdefault(link, _Order()))
                if sequence.refill_from is not None:
                    continue  # its features come with the next round: a block would only wait for them
            if sequence.phase is Phase.RUNNING and self._planner.wants_draft(sequence):
                if sequence.skip_drafts > 0:
                    sequence.skip_drafts -= 1
                elif sequence.refill_from is None:
                    self._ask(sequence, orders.setdefault(link, _Order()))
        return orders

    def _settle_drafter(self, sequence: Sequence) -> None:
        """Sequences stick to their drafter while it lives, and move when it is gone."""
        if sequence.drafter is not None:
            if not sequence.drafter.is_lost:
                return
            sequence.leave_drafter()
        if self._planner.wants_draft(sequence):
            link = self._pool.choose_drafter(self._target)
            if link is not None:
                sequence.join_drafter(link)

    def _open(self, sequence: Sequence, order: _Order) -> None:
        order.opens.append((sequence.key, 0))
        order.sequences[sequence.key] = sequence
        sequence.drafter_knows = True
        # What the target has computed already is not sent again by itself.
        sequence.refill_from = 0 if sequence.cached_len > 0 else None

    def _ask(self, sequence: Sequence, order: _Order) -> None:
        order.sequences[sequence.key] = sequence
        order.blocks.append(
            DraftBlock(sequence.key, sequence.token_ids[-1], sequence.root_position, sequence.request.sampling)
        )

    def _send(self, link: DrafterLink, order: _Order) -> asyncio.Task[DraftResult]:
        request = DraftRequest(
            batch_id=next(link.batch_ids),
            opens=tuple(order.opens),
            releases=link.take_releases(),
            blocks=tuple(order.blocks),
            wait_ms=self._settings.draft_wait_ms,
            queued_sequences=self._pool.num_waiting,
        )
        task = asyncio.ensure_future(link.drafter.draft(request))
        self._in_flight[link] = _InFlight(task, order)
        return task

    # --- taking the answers

    def _collect_finished(self) -> None:
        for link in [link for link, entry in self._in_flight.items() if entry.task.done()]:
            entry = self._in_flight.pop(link)
            try:
                result = entry.task.result()
            except (Unavailable, asyncio.CancelledError) as error:
                self._pool.drafter_lost(link, str(error))
                continue
            except Exception as error:
                # The drafter is there but could not answer: its sequences are opened anew, ever more rarely.
                logger.exception("drafter %r failed a batch", link.address)
                for sequence in entry.order.sequences.values():
                    self._needs_refill(sequence, link, 0, f"{error}")
                    sequence.drafter_knows = False
                continue
            self._timings.add_all("drafter", result.stage_times_us)
            for draft in result.drafts:
                sequence_or_none = entry.order.sequences.get(draft.key)
                if sequence_or_none is not None:
                    self._take(sequence_or_none, link, draft)

    def _take(self, sequence: Sequence, link: DrafterLink, draft: Draft) -> None:
        if draft.key != sequence.key or sequence.drafter is not link:
            return  # an older attempt, or it has moved to another drafter meanwhile
        if draft.error is not None:
            self._needs_refill(sequence, link, 0, draft.error)
            sequence.drafter_knows = False
        elif draft.missing_from is not None:
            self._needs_refill(sequence, link, draft.missing_from, f"features from {draft.missing_from} on missing")
        elif draft.context_len == sequence.root_position:
            sequence.draft = draft
            sequence.num_refills = 0

    def _needs_refill(self, sequence: Sequence, link: DrafterLink, from_position: int, reason: str) -> None:
        if sequence.drafter is not link or sequence.phase is Phase.DONE:
            return
        logger.info("sequence %s on drafter %r: %s; refilling", sequence.key, link.address, reason)
        sequence.refill_from = from_position
        sequence.skip_drafts = min(2**sequence.num_refills - 1, _MOST_SKIPPED_ROUNDS)
        sequence.num_refills = min(sequence.num_refills + 1, 8)
