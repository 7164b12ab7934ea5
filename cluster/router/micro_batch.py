"""One micro-batch of a target: some of its sequences, and their round loop, *draft → plan → verify → commit*."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Protocol

from cluster.router.clock import now
from cluster.router.committing import SequenceKeeper, commit_round
from cluster.router.drafting import DrafterPool, DraftStage
from cluster.router.estimates import ObservedRound
from cluster.router.latency import RoundLoad
from cluster.router.links import TargetLink
from cluster.router.planning import RoundPlan, plan_round
from cluster.router.promises import Promise
from cluster.router.prospects import shape_at
from cluster.router.sequence import DONE, Sequence
from cluster.router.settings import RouterSettings
from cluster.router.speculation import Speculation
from cluster.router.timings import COMMIT, DRAFT, IDLE, LEARN, PLAN, VERIFY, RoundTimings
from cluster.router.tree_planner import TreePlanner
from dflash_core.contracts import OUTCOME_OK, PackedOutcomes, RoundResult
from dflash_core.errors import DFlashError, Unavailable

logger = logging.getLogger(__name__)


class RoundHost(SequenceKeeper, DrafterPool, Protocol):
    """What a round loop needs of the router around it."""

    def target_lost(self, link: TargetLink, reason: str) -> None: ...

    @property
    def queued_per_target(self) -> int: ...


class Rounds(Protocol):
    """What the micro-batches of one target share."""

    @property
    def next_round_id(self) -> int: ...

    def sequences_of(self, index: int) -> list[Sequence]:
        """Those of a micro-batch, newcomers dealt out."""
        ...

    def settle(self, index: int) -> None:
        """Between two rounds of this micro-batch: moves sequences to where they should be from now on."""
        ...

    def has_work(self, index: int) -> bool: ...

    async def work(self, index: int) -> None:
        """Until there is something to do for it, or the target is lost."""
        ...

    def verified(self, sent_at: float, ended_at: float) -> tuple[float, float | None]:
        """A round has come back. Seconds that the target was busy with it, and since the round before came back, None
        where there was nothing to do in between."""
        ...


class MicroBatch:
    """Everything here belongs to one task, but for what the target's micro-batches share."""

    def __init__(
        self,
        index: int,
        rounds: Rounds,
        link: TargetLink,
        host: RoundHost,
        planner: TreePlanner,
        speculation: Speculation,
        settings: RouterSettings,
        timings: RoundTimings,
    ) -> None:
        self._index = index
        self._rounds = rounds
        self._link = link
        self._host = host
        self._planner = planner
        self._speculation = speculation
        self._settings = settings
        self._timings = timings
        self._draft_stage = DraftStage(link, host, planner, speculation, settings, timings)

    async def run(self) -> None:
        """Ends when the target is lost, or by cancellation."""
        last: _Verified | None = None  # not learned from yet
        ended_at: float | None = None  # of the round before; None after idling
        loop = asyncio.get_running_loop()
        try:
            while not self._link.is_lost:
                self._rounds.settle(self._index)
                if not self._rounds.has_work(self._index):
                    if last is not None:
                        self._learn(last)
                    with self._timings.wait(IDLE):
                        await self._rounds.work(self._index)
                    last = ended_at = None
                    continue
                num_blocks = self._draft_stage.ask(self._rounds.sequences_of(self._index))
                promise = self._speculation.promise
                if last is not None and (num_blocks or last.plan.planned.num_drafted):
                    self._learn(last)  # while the drafters are at it; what came of trees, before others are built
                    last = None
                with self._timings.wait(DRAFT):
                    await self._draft_stage.wait()
                plan = self._plan()
                if plan.is_empty:  # whoever was here has gone meanwhile
                    await asyncio.sleep(0)
                    continue
                if ended_at is not None:
                    self._speculation.times.observe_between(num_blocks, now() - ended_at)
                if last is not None:
                    loop.call_soon(self._learn, last)  # once the request is on its way
                last = await self._verify_and_commit(plan, promise)
                ended_at = None if last is None else now()
        finally:
            self._draft_stage.close()

    def _plan(self) -> RoundPlan:
        with self._timings.stage(PLAN):
            return plan_round(
                self._rounds.next_round_id,
                self._link,
                self._rounds.sequences_of(self._index),
                self._speculation,
                self._planner,
                self._settings,
                self._host.queued_per_target,
            )

    async def _verify_and_commit(self, plan: RoundPlan, promise: Promise | None) -> _Verified | None:
        """What can be learned from; None where the round failed."""
        feeds = any(sequence.is_fed for sequence in plan.sequences)  # now: who ends with this round is fed no more
        try:
            sent_at = now()
            with self._timings.wait(VERIFY):
                result = await self._link.target.run_round(plan.request)
            verify_s, cycle_s = self._rounds.verified(sent_at, now())
            teaches, num_micro_batches = _teaches(plan, result), self._speculation.times.num_micro_batches
            self._timings.verified(self._link.target, self._index, sent_at, plan.request, result)
            with self._timings.stage(COMMIT):
                commit_round(self._link, plan, result, self._host, self._timings, now())
        except Unavailable as error:
            self._host.target_lost(self._link, error.message)
        except Exception as error:
            # The round as a whole failed but the target is there. Nobody knows what it committed.
            logger.exception("round %d failed", plan.request.round_id)
            self._link.releases.extend(plan.request.releases)
            reason = error.message if isinstance(error, DFlashError) else repr(error)
            for sequence in plan.sequences:
                if sequence.target is self._link:
                    self._host.prefill_again(sequence, f"its round failed: {reason}")
        else:
            return _Verified(plan, result, num_micro_batches, verify_s, cycle_s, feeds, teaches, promise)
        return None

    def _learn(self, verified: _Verified) -> None:
        """From what a round took, and from what the target wrote after each root that had a draft."""
        plan, planned = verified.plan, verified.plan.planned
        self._speculation.observe_round(
            ObservedRound(
                RoundLoad.done(plan.request, verified.result),
                planned,
                verified.verify_s,
                verified.cycle_s,
                verified.feeds,
                verified.num_micro_batches,
            )
        )
        if planned.batch is None:
            return
        with self._timings.stage(LEARN):
            outcomes = PackedOutcomes.of(verified.result.outcomes).after(len(plan.request.prefills))
            drafted = planned.drafted
            teaching = [entry for entry, place in enumerate(drafted.places) if verified.teaches[place]]
            places = [drafted.places[entry] for entry in teaching]
            of_trees = planned.batch.expected_tokens.tolist()
            expected_tokens = [of_trees[place] for place in places]
            num_accepted = [outcomes.num_accepted[place] for place in places]
            shape = shape_at(planned.num_nodes / planned.num_drafted)
            sequences = [drafted.sequences[entry] for entry in teaching]
            brought_tokens = self._speculation.observe_drafts(sequences, expected_tokens, num_accepted, shape)
            if verified.promise is not None:
                verified.promise.observe(brought_tokens, verified.num_micro_batches)
            self._timings.expected_tokens += sum(expected_tokens)
            self._timings.drafted_tokens += sum(num_accepted) + len(places)
            self._planner.learn(planned, outcomes, verified.teaches)


@dataclass(frozen=True, slots=True)
class _Verified:
    """A round that went well, as far as it can be learned from."""

    plan: RoundPlan
    result: RoundResult
    num_micro_batches: int  # of the target
    verify_s: float  # that the target was busy with it
    cycle_s: float | None  # since the round before ended on this target; None after a time of idleness
    feeds: bool  # some drafter
    teaches: list[bool]  # whether there is something to learn from each of the trees
    promise: Promise | None  # of its drafts, when they were chosen


def _teaches(plan: RoundPlan, result: RoundResult) -> list[bool]:
    """Of each tree. Before the outcomes are committed: a sequence that has ended by then was cancelled while the round
    ran, and its history may be another's."""
    num_prefills = len(plan.request.prefills)
    statuses = PackedOutcomes.of(result.outcomes).statuses[num_prefills:]
    return [
        status is OUTCOME_OK and sequence.phase is not DONE
        for sequence, status in zip(plan.sequences[num_prefills:], statuses, strict=False)
    ]
