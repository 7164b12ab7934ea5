"""The *draft* stage: announces newcomers to their drafters and fetches the next blocks of the others."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from cluster.router.clock import now
from cluster.router.drafts_in_flight import DraftOrder, DraftsInFlight
from cluster.router.links import DrafterLink, TargetLink
from cluster.router.sequence import DONE, RUNNING, Sequence
from cluster.router.settings import RouterSettings
from cluster.router.speculation import Speculation
from cluster.router.timings import RoundTimings
from cluster.router.tree_planner import TreePlanner
from dflash_core.contracts import DraftRequest, PackedDrafts
from dflash_core.errors import Unavailable

logger = logging.getLogger(__name__)

_MOST_SKIPPED_ROUNDS = 15
# So many rounds are drafters fed without being asked: for as long as one decision stands. Features cost the target, the
# network and the drafter (the embedded pair on two cores: one request's round without drafts 14.4 ms, 10.6 where it
# feeds nobody); to catch up later costs a round without a draft.
MOST_UNASKED_ROUNDS = 4


class DrafterPool(Protocol):
    """The part of the router that this stage needs."""

    def choose_drafter(self, target: TargetLink) -> DrafterLink | None:
        """The least used one that understands this target, a slow one only where all are."""
        ...

    def drafter_lost(self, link: DrafterLink, reason: str) -> None: ...

    @property
    def queued_per_drafter(self) -> int: ...


class DraftStage:
    """One per micro-batch.

    What a drafter answers never changes a token; it changes how many come per round.
    """

    def __init__(
        self,
        target: TargetLink,
        pool: DrafterPool,
        planner: TreePlanner,
        speculation: Speculation,
        settings: RouterSettings,
        timings: RoundTimings,
    ) -> None:
        self._target = target
        self._pool = pool
        self._planner = planner
        self._speculation = speculation
        self._settings = settings
        self._timings = timings
        self._in_flight = DraftsInFlight(speculation, settings)

    def ask(self, sequences: list[Sequence]) -> int:
        """Announces newcomers and asks for the drafts that pay; returns how many blocks were asked for."""
        self._collect_finished()
        orders = self._orders(sequences)
        for link, order in orders.items():
            self._send(link, order)
        return sum(len(order.asked) for order in orders.values())

    async def wait(self) -> None:
        """Until every drafter asked last has answered, or waiting for the rest pays no more."""
        await self._in_flight.wait()
        self._collect_finished()

    def close(self) -> None:
        """What is on its way goes on: it may carry releases."""
        self._in_flight.close()

    # --- asking

    def _orders(self, sequences: list[Sequence]) -> dict[DrafterLink, DraftOrder]:
        orders: dict[DrafterLink, DraftOrder] = {}
        running: list[Sequence] = []
        ready: list[Sequence] = []  # of the running ones, who could be drafted for
        is_paying = self._speculation.is_paying
        busy = self._in_flight.drafters
        settled = {link for link in {sequence.drafter for sequence in sequences} if link is not None and link.is_fine}
        for sequence in sequences:
            link = sequence.drafter
            if link not in settled:
                link = self._settle_drafter(sequence)
            sequence.is_announced = True
            is_running = sequence.phase is RUNNING
            if is_running:
                running.append(sequence)
            if link is None or link in busy:
                continue
            if not sequence.drafter_knows and (is_paying or sequence.refill_from is not None):
                self._open(sequence, orders.setdefault(link, DraftOrder()))
                if sequence.refill_from is not None:
                    continue  # its features come with the next round: a block would only wait for them
            if not is_running:
                continue
            if sequence.skip_drafts > 0:
                sequence.skip_drafts -= 1
            elif sequence.refill_from is None:
                ready.append(sequence)
        chosen = self._speculation.choose_drafted(ready, running)
        for sequence in chosen:
            assert sequence.drafter is not None, f"{sequence.key} is ready without a drafter"
            sequence.num_unasked = 0
            order = orders.setdefault(sequence.drafter, DraftOrder())
            if sequence.is_fed:
                self._planner.rank(sequence)
                order.asked[sequence.key] = sequence
            elif sequence.drafter_knows:
                sequence.feed_again()
            else:
                self._open(sequence, order)
        if len(chosen) < len(ready):
            self._pass_over(ready, set(chosen))
        return orders

    def _pass_over(self, ready: list[Sequence], chosen: set[Sequence]) -> None:
        """Those that are ready and not chosen: who is passed over again and again is fed no more."""
        most = 0 if self._speculation.stops_feeding else MOST_UNASKED_ROUNDS
        for sequence in ready:
            if sequence not in chosen:
                sequence.num_unasked += 1
                if sequence.num_unasked > most and sequence.is_fed:
                    sequence.stop_feeding()

    def _settle_drafter(self, sequence: Sequence) -> DrafterLink | None:
        """Sequences stick to their drafter, and move when it is gone, or slow while another one is not."""
        held = sequence.drafter
        if held is not None:
            if not held.is_lost:
                other = self._pool.choose_drafter(self._target)
                if other is None or other.is_slow:
                    return held
                logger.info("sequence %s leaves drafter %r, which is slow", sequence.key, held.address)
            sequence.leave_drafter()
        if self._planner.wanting([sequence]):
            link = self._pool.choose_drafter(self._target)
            if link is not None:
                sequence.join_drafter(link)
        return sequence.drafter

    def _open(self, sequence: Sequence, order: DraftOrder) -> None:
        order.opened[sequence.key] = sequence
        sequence.drafter_knows = True
        # What the target has computed already is not sent again by itself.
        sequence.refill_from = 0 if sequence.cached_len > 0 else None

    def _send(self, link: DrafterLink, order: DraftOrder) -> None:
        request = DraftRequest(
            batch_id=next(link.batch_ids),
            opens=tuple([(key, 0) for key in order.opened]),
            releases=link.take_releases(),
            blocks=order.blocks(),
            wait_ms=self._settings.draft_wait_ms,
            queued_sequences=self._pool.queued_per_drafter,
            num_candidates=self._planner.num_candidates,
        )
        self._in_flight.add(link, asyncio.ensure_future(link.drafter.draft(request)), order)

    # --- taking the answers

    def _collect_finished(self) -> None:
        for link, entry in self._in_flight.take_finished():
            try:
                result = entry.task.result()
            except (Unavailable, asyncio.CancelledError) as error:
                self._pool.drafter_lost(link, str(error))
                continue
            except Exception as error:
                # The drafter is there but could not answer: its sequences are opened anew, ever more rarely.
                logger.exception("drafter %r failed a batch", link.address)
                for sequence in entry.order.sequences:
                    self._open_anew(sequence, link, f"{error}")
                continue
            ended_at = now() if entry.done_at is None else entry.done_at
            link.times.observe(len(entry.order.asked), ended_at - entry.sent_at)
            if not entry.was_late:
                link.num_late = 0
            self._timings.drafted(link.drafter, entry.sent_at, ended_at, result)
            self._take(entry.order, link, PackedDrafts.of(result.drafts))

    def _take(self, order: DraftOrder, link: DrafterLink, drafts: PackedDrafts) -> None:
        refused = drafts.errors.keys() | drafts.missing_from.keys()
        for place, (key, context_len) in enumerate(zip(drafts.keys, drafts.context_lens, strict=True)):
            sequence = order.asked.get(key)
            if sequence is None or sequence.key != key or sequence.drafter is not link:
                continue  # an older attempt, or it has moved to another drafter meanwhile
            if place in refused:
                self._take_refusal(sequence, link, drafts, place)
            elif context_len == sequence.root_position:
                sequence.drafts, sequence.draft_place = drafts, place
                sequence.num_refills = 0

    def _take_refusal(self, sequence: Sequence, link: DrafterLink, drafts: PackedDrafts, place: int) -> None:
        if place in drafts.errors:
            self._open_anew(sequence, link, drafts.errors[place])
        else:
            position = drafts.missing_from[place]
            self._needs_refill(sequence, link, position, f"features from {position} on missing")

    def _open_anew(self, sequence: Sequence, link: DrafterLink, reason: str) -> None:
        """Whatever the drafter holds of it, it holds no more."""
        if sequence.drafter is link and sequence.drafter_knows:
            link.release(sequence.key)
            sequence.drafter_knows = False
            if sequence.unfed_from is not None:
                sequence.unfed_from = None  # all of it, if ever, when it is opened again
                return
            self._needs_refill(sequence, link, 0, reason)

    def _needs_refill(self, sequence: Sequence, link: DrafterLink, from_position: int, reason: str) -> None:
        if sequence.drafter is not link or sequence.phase is DONE:
            return
        if sequence.unfed_from is not None:  # a late answer
            sequence.unfed_from = min(sequence.unfed_from, from_position)
            return
        logger.info("sequence %s on drafter %r: %s; refilling", sequence.key, link.address, reason)
        sequence.refill_from = from_position
        sequence.skip_drafts = min(2**sequence.num_refills - 1, _MOST_SKIPPED_ROUNDS)
        sequence.num_refills = min(sequence.num_refills + 1, 8)
