"""The router: admits requests, places them on targets and drafters, and keeps them alive when those die."""

from __future__ import annotations

import asyncio
import logging
import secrets
from functools import partial
from itertools import count

import numpy as np

from cluster.requests import EventSink, GenerationRequest, GenerationStatistics, TokenEvent
from cluster.router.admission import check_request, finished_before
from cluster.router.clock import now
from cluster.router.learned import LearnedStore
from cluster.router.links import DrafterLink, TargetLink
from cluster.router.pairing import check_fits_any, check_same_model, is_paired
from cluster.router.placement import choose_drafter, place_waiting
from cluster.router.rounds import TargetRounds
from cluster.router.sequence import DONE, PREFILLING, WAITING, Sequence
from cluster.router.settings import RouterSettings
from cluster.router.timings import RoundTimings
from cluster.router.tree_planner import TreePlanner
from cluster.router.waiting import Rank, WaitingQueue
from dflash_core.contracts import Drafter, Target, TargetInfo
from dflash_core.errors import DeadlineExceeded, DFlashError, Overloaded, Unavailable

logger = logging.getLogger(__name__)

_NO_TOKENS = np.empty(0, dtype=np.int32)


class Router:
    """All methods must be called on the event loop it was made in; nothing in here blocks it.

    Life: `Router(settings)`, `add_target(...)`, `add_drafter(...)`, `submit(...)` …, `await close()`.
    A sequence is named by its client's `EventSink` and the request's `sequence_id`; two clients may use one id.
    """

    def __init__(self, settings: RouterSettings | None = None) -> None:
        self.settings = settings or RouterSettings()
        self.timings = RoundTimings()
        self._planner = TreePlanner(self.settings)
        folder = self.settings.learned_folder
        self._learned = None if folder is None else LearnedStore(folder, self._planner)
        self._targets: dict[Target, TargetLink] = {}
        self._drafters: dict[Drafter, DrafterLink] = {}
        self._tasks: dict[TargetLink, asyncio.Task[None]] = {}
        self._rounds: dict[TargetLink, TargetRounds] = {}
        self._sequences: dict[tuple[EventSink, str], Sequence] = {}
        self._waiting = WaitingQueue(self.settings.queue_ms_per_token / 1e3)
        # Ids must differ between clients, and between routers that share a drafter.
        self._name = secrets.token_hex(4)
        self._numbers = count(1)

    # --- what it is made of

    @property
    def target_info(self) -> TargetInfo | None:
        """Of the target that was added first among those here; None while there is none."""
        return next((link.info for link in self._targets.values()), None)

    @property
    def is_ready(self) -> bool:
        """A round can run now."""
        return bool(self._targets)

    @property
    def num_targets(self) -> int:
        return len(self._targets)

    @property
    def num_drafters(self) -> int:
        return len(self._drafters)

    @property
    def num_running(self) -> int:
        return sum(len(link.sequences) for link in self._targets.values())

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def queued_per_target(self) -> int:
        """Each target's share of the queue, rounded up: what it is told, for scaling the pool."""
        return -(-len(self._waiting) // max(1, len(self._targets)))

    @property
    def queued_per_drafter(self) -> int:
        """As `queued_per_target`."""
        return -(-len(self._waiting) // max(1, len(self._drafters)))

    @property
    def num_active(self) -> int:
        return len(self._sequences)

    @property
    def rounds(self) -> list[TargetRounds]:
        """Of each target here."""
        return list(self._rounds.values())

    @property
    def drafters(self) -> list[DrafterLink]:
        return list(self._drafters.values())

    def add_target(self, target: Target) -> None:
        """Raises `CheckpointMismatch` where the target is not the same model as those already here."""
        link = TargetLink(target, self.settings.max_running)
        for other in self._targets.values():
            check_same_model(other.info, link.info)
        self._targets[target] = link
        for drafter in self._drafters.values():
            is_paired(link.info, drafter.info)
        rounds = TargetRounds(link, self, self._planner, self.settings, self.timings)
        task = asyncio.create_task(rounds.run(), name=f"rounds of {link.info.model}")
        task.add_done_callback(partial(self._rounds_ended, link))
        self._tasks[link], self._rounds[link] = task, rounds
        if self._learned is not None and link.info.fc_fingerprint:
            self._learned.open(link.info.fingerprint)
        for sequence in self._waiting.aside:
            if link.could_hold(sequence):
                sequence.stop_failover_timer()
                self._waiting.take_back(sequence)
        self.place_waiting()

    def remove_target(self, target: Target, reason: str = "it was removed") -> None:
        """Its sequences are prefilled on another target, or wait for one at most `failover_timeout_s`."""
        link = self._targets.get(target)
        if link is not None:
            self.target_lost(link, reason)

    def add_drafter(self, drafter: Drafter) -> None:
        """Raises `CheckpointMismatch` when it fits none of the targets here."""
        link = DrafterLink(drafter)
        check_fits_any([target.info for target in self._targets.values()], link.info)
        self._drafters[drafter] = link

    def remove_drafter(self, drafter: Drafter, reason: str = "it was removed") -> None:
        """Its sequences go on, first with the root alone, then on another drafter."""
        link = self._drafters.get(drafter)
        if link is not None:
            self.drafter_lost(link, reason)

    # --- clients

    def submit(self, request: GenerationRequest, sink: EventSink) -> None:
        """Starts a generation whose events go to `sink`.

        Raises `InvalidRequest` (of it `PromptTooLong`), `Overloaded`, or `Unavailable` where there is no target.
        """
        if not self._targets:
            raise Unavailable("no target is connected to this router")
        handle = (sink, request.sequence_id)
        check_request(request, [link.info for link in self._targets.values()], handle in self._sequences)
        sequence = Sequence.of(request, sink, f"{self._name}.{next(self._numbers)}", now())
        finish = finished_before(sequence)
        if finish is not None:
            sink.put([TokenEvent(request.sequence_id, _NO_TOKENS, finish, sequence.statistics(sequence.submitted_at))])
            return
        num_known = max(link.num_known_tokens(sequence) for link in self._targets.values())
        rank = self._waiting.rank(sequence, len(sequence.token_ids) - num_known)
        if len(self._waiting) >= self.settings.max_waiting:
            self._displace(rank)
        self._sequences[handle] = sequence
        sequence.start_timer(self._expire)
        self._waiting.push(sequence, rank)
        self.place_waiting()

    def _displace(self, rank: Rank) -> None:
        """Makes room in a full queue for a newcomer more urgent than the last in it; else raises `Overloaded`."""
        retry_after_s = self._waiting.drain_rate.seconds_for(len(self._waiting), now())
        full = f"{len(self._waiting)} requests are waiting, the limit is {self.settings.max_waiting}"
        last = self._waiting.displaced_by(rank)
        if last is None:
            raise Overloaded(full, retry_after_s=retry_after_s)
        self.fail(last, Overloaded(f"a more urgent request took its place: {full}", retry_after_s=retry_after_s))

    def cancel(self, sequence_id: str, sink: EventSink) -> GenerationStatistics | None:
        """No further event follows; blocks are free within one round. Returns what it cost so far.

        None for an unknown id, which may just be done.
        """
        sequence = self._sequences.get((sink, sequence_id))
        if sequence is None:
            return None
        self.finish(sequence)
        self.place_waiting()
        return sequence.statistics(now())

    def release_client(self, sink: EventSink) -> None:
        """Cancels all sequences of a client that is gone."""
        for sequence in [sequence for sequence in self._sequences.values() if sequence.sink is sink]:
            self.finish(sequence)
        self.place_waiting()

    async def close(self, reason: str = "the router is shutting down") -> None:
        """Fails what is left with `Unavailable` and stops the round loops."""
        for sequence in list(self._sequences.values()):
            self.fail(sequence, Unavailable(reason))
        tasks = list(self._tasks.values())
        for link in list(self._targets.values()):
            self._forget_target(link)
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(drafter.close() for drafter in self._drafters.values()))
        if self._learned is not None:
            await self._learned.close()

    # --- sequences: RoundHost

    def finish(self, sequence: Sequence) -> None:
        """Takes a sequence out of every table and frees what target and drafter hold of it."""
        if sequence.phase is DONE:
            return
        if sequence.phase is WAITING:
            self._waiting.remove(sequence)
        sequence.phase = DONE
        sequence.stop_timers()
        sequence.leave_drafter()
        self._planner.forget(sequence)
        if sequence.target is not None:
            sequence.target.remove(sequence)
        del self._sequences[sequence.sink, sequence.request.sequence_id]

    def fail(self, sequence: Sequence, error: DFlashError) -> None:
        if sequence.phase is DONE:
            return
        self.finish(sequence)
        sequence.sink.put([TokenEvent(sequence.request.sequence_id, _NO_TOKENS, error=error)])

    def prefill_again(self, sequence: Sequence, reason: str) -> None:
        """On the same target, under a higher attempt. Bounded by `max_retries`."""
        if sequence.target is None or not self._may_retry(sequence, reason):
            return
        sequence.target.reopen(sequence)
        sequence.next_attempt()
        sequence.target.recount(sequence)
        sequence.phase = PREFILLING

    def preempt(self, sequence: Sequence) -> None:
        """Puts one whose blocks the target took in front of the queue, under a higher attempt: it did nothing wrong."""
        assert sequence.target is not None, f"{sequence.key} is preempted by a target where it is not"
        logger.info("sequence %s is preempted with %d tokens", sequence.key, len(sequence.token_ids))
        sequence.target.drop(sequence)
        sequence.next_attempt()
        sequence.phase = WAITING
        self._waiting.put_back(sequence)

    def _may_retry(self, sequence: Sequence, reason: str) -> bool:
        if sequence.phase is DONE:
            return False
        sequence.retries += 1
        if sequence.retries > self.settings.max_retries:
            self.fail(sequence, Unavailable(f"given up after {self.settings.max_retries} retries; last: {reason}"))
            return False
        logger.warning("sequence %s starts again (%d): %s", sequence.key, sequence.retries, reason)
        return True

    def _expire(self, sequence: Sequence) -> None:
        self.fail(sequence, DeadlineExceeded(f"timeout_ms {sequence.request.timeout_ms} ran out"))
        self.place_waiting()

    # --- placement: RoundHost

    def choose_drafter(self, target: TargetLink) -> DrafterLink | None:
        return choose_drafter(target, self._drafters.values())

    def place_waiting(self) -> None:
        """Starts those of the queue that fit now; see `cluster/router/placement.py`."""
        place_waiting(self._waiting, self._targets.values(), now())

    def target_lost(self, link: TargetLink, reason: str) -> None:
        if link.is_lost:
            return
        logger.warning("target %r is lost with %d sequences: %s", link.info.model, len(link.sequences), reason)
        sequences = list(link.sequences)
        self._forget_target(link)
        for sequence in reversed(sequences):
            link.remove(sequence)
            sequence.next_attempt()
            sequence.phase = WAITING
            self._waiting.put_back(sequence)
        for sequence in sequences:
            self._may_retry(sequence, f"target lost: {reason}")
        loop = asyncio.get_running_loop()
        for sequence in [*self._waiting]:
            if sequence.failover_timer is None and not any(o.could_hold(sequence) for o in self._targets.values()):
                self._waiting.set_aside(sequence)
                sequence.failover_timer = loop.call_later(
                    self.settings.failover_timeout_s, self._give_up, sequence, reason
                )
        self.place_waiting()

    def _forget_target(self, link: TargetLink) -> None:
        link.is_lost = True
        link.wake.set()
        del self._targets[link.target]
        del self._rounds[link]
        task = self._tasks.pop(link)
        if task is not asyncio.current_task():
            task.cancel()

    def _rounds_ended(self, link: TargetLink, task: asyncio.Task[None]) -> None:
        """A round loop ends by itself only with its target; any error in it must not leave sequences behind."""
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the round loop of target %r broke", link.info.model, exc_info=error)
            self.target_lost(link, f"its round loop broke: {error!r}")

    def _give_up(self, sequence: Sequence, reason: str) -> None:
        waited_s = self.settings.failover_timeout_s
        self.fail(sequence, Unavailable(f"no target came back within {waited_s} s of losing the last: {reason}"))

    def drafter_lost(self, link: DrafterLink, reason: str) -> None:
        if link.is_lost:
            return
        logger.warning("drafter %r is lost with %d sequences: %s", link.address, link.num_sequences, reason)
        link.is_lost = True
        del self._drafters[link.drafter]
