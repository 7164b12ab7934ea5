"""The round loop of one target: plan → verify → commit → draft."""

from __future__ import annotations

import logging
from itertools import count
from typing import Protocol

from cluster.router.clock import now
from cluster.router.committing import SequenceKeeper, commit_round
from cluster.router.drafting import DrafterPool, DraftStage
from cluster.router.links import TargetLink
from cluster.router.planning import RoundPlan, plan_round
from cluster.router.settings import RouterSettings
from cluster.router.timings import COMMIT, DRAFT, IDLE, PLAN, VERIFY, RoundTimings
from cluster.router.tree_planner import TreePlanner
from dflash_core.errors import DFlashError, Unavailable

logger = logging.getLogger(__name__)


class RoundHost(SequenceKeeper, DrafterPool, Protocol):
    """What a round loop needs of the router around it."""

    def target_lost(self, link: TargetLink, reason: str) -> None: ...


class RoundLoop:
    """Runs one micro-batch of one target, which is all of its sequences."""

    def __init__(self, link: TargetLink, host: RoundHost, settings: RouterSettings, timings: RoundTimings) -> None:
        self._link = link
        self._host = host
        self._settings = settings
        self._timings = timings
        self._planner = TreePlanner(settings)
        self._draft_stage = DraftStage(link, host, self._planner, settings, timings)
        self._round_ids = count(1)

    async def run(self) -> None:
        """Ends when the target is lost, or by cancellation."""
        try:
            while not self._link.is_lost:
                if not self._has_work:
                    with self._timings.wait(IDLE):
                        await self._work()
                plan = self._plan()
                if not plan.is_empty:
                    await self._verify_and_commit(plan)
                with self._timings.wait(DRAFT):
                    await self._draft_stage.run()
        finally:
            self._draft_stage.close()

    @property
    def _has_work(self) -> bool:
        return bool(self._link.sequences or self._link.releases)

    async def _work(self) -> None:
        while not (self._has_work or self._link.is_lost):
            self._link.wake.clear()
            await self._link.wake.wait()

    def _plan(self) -> RoundPlan:
        with self._timings.stage(PLAN):
            return plan_round(next(self._round_ids), self._link, self._planner, self._settings, self._host.num_waiting)

    async def _verify_and_commit(self, plan: RoundPlan) -> None:
        try:
            with self._timings.wait(VERIFY):
                result = await self._link.target.run_round(plan.request)
            with self._timings.stage(COMMIT):
                commit_round(self._link, plan, result, self._host, self._timings, now())
            self._timings.add_all("target", result.stage_times_us)
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
