"""Target and drafter in the router's own process: model work on one thread, the event loop stays free."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor, Future
from dataclasses import replace

from cluster.transports.runner_protocols import DrafterModelRunner, TargetModelRunner, run_draft_request
from dflash_core.contracts import (
    ContextAck,
    ContextChunk,
    ContextSink,
    DrafterInfo,
    DraftRequest,
    DraftResult,
    RoundRequest,
    RoundResult,
    TargetInfo,
)
from dflash_core.errors import Unavailable

logger = logging.getLogger(__name__)


class InProcessTarget:
    """Implements `dflash_core.contracts.Target`. Where all share one core, give drafter and target one executor."""

    def __init__(self, runner: TargetModelRunner, context_sink: ContextSink, executor: Executor) -> None:
        self._runner = runner
        self._context_sink = context_sink
        self._executor = executor
        self.info: TargetInfo = runner.info

    async def run_round(self, request: RoundRequest) -> RoundResult:
        """Raises `Unavailable` when the round takes longer than its `timeout_ms`, or the executor is shut down."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(request.timeout_ms / 1e3):
                return await loop.run_in_executor(self._executor, self._run, request)
        except TimeoutError:
            raise Unavailable(f"round {request.round_id} took longer than {request.timeout_ms} ms") from None

    def _run(self, request: RoundRequest) -> RoundResult:
        output = self._runner.run_round(request)
        # Before the router hears of the tokens: whatever asks for their drafts queues up behind their features.
        for address, chunks in output.context.items():
            self._context_sink.send(address, chunks)
        return output.result


class InProcessDrafter:
    """Implements `dflash_core.contracts.Drafter`. `address` names it in `Prefill` and `Refill`."""

    def __init__(self, runner: DrafterModelRunner, executor: Executor, address: str = "in-process") -> None:
        self._runner = runner
        self._executor = executor
        self.info: DrafterInfo = replace(runner.info, address=address)

    async def draft(self, request: DraftRequest) -> DraftResult:
        loop = asyncio.get_running_loop()
        # Shielded: what a cancelled request releases must go all the same.
        return await asyncio.shield(loop.run_in_executor(self._executor, run_draft_request, self._runner, request))

    def append_context(self, chunks: list[ContextChunk]) -> None:
        """Queues the chunks before any draft that is asked for from now on; callable from any thread."""
        self._executor.submit(self._runner.append_context, chunks).add_done_callback(_log_failure)


class InProcessContextSink:
    """Implements `dflash_core.contracts.ContextSink` for drafters of this process."""

    def __init__(self, *drafters: InProcessDrafter) -> None:
        self._drafters = {drafter.info.address: drafter for drafter in drafters}

    def send(self, drafter_address: str, chunks: list[ContextChunk]) -> None:
        drafter = self._drafters.get(drafter_address)
        if drafter is not None:
            drafter.append_context(chunks)


def _log_failure(future: Future[list[ContextAck]]) -> None:
    # The drafter finds the gap by itself and reports `missing_from`; here only the cause is told.
    if not future.cancelled() and (error := future.exception()) is not None:
        logger.error("a drafter did not take context features", exc_info=error)
