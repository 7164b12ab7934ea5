"""The drafter's gRPC server: routers ask for drafts, targets bring context features.

runner = DrafterRunner.load(...)
service = DrafterService(runner)
running = await start_server(service.register, host, ports)      # running.address is what routers dial
…
await running.stop(grace_s=1); await service.close()
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace

import grpc.aio
import numpy as np

from cluster.status import grpc_status
from cluster.transports.draft_lag import DraftLag
from cluster.transports.held_contexts import HeldContexts
from cluster.transports.runner_protocols import DrafterModelRunner, draft_blocks
from cluster.wire.drafts import (
    context_ack_to_pb,
    context_batch_from_pb,
    draft_request_from_pb,
    draft_result_to_pb,
    drafter_info_to_pb,
)
from cluster.wire.limits import MAX_SEQUENCES
from dflash_core.contracts import Draft, DraftRequest, DraftResult, SequenceKey
from dflash_core.errors import DeviceLost, DFlashError, Overloaded, Unavailable
from protos import drafter_pb2, drafter_pb2_grpc

logger = logging.getLogger(__name__)

_MAX_WAIT_MS = 60_000
_MAX_UNANSWERED = 1024  # batches of one stream; a sound router has one or two per target

Opened = dict[str, SequenceKey]  # by sequence id: what one stream has opened

DraftsContext = grpc.aio.ServicerContext[drafter_pb2.DraftRequest, drafter_pb2.DraftResult]
ContextContext = grpc.aio.ServicerContext[drafter_pb2.ContextBatch, drafter_pb2.ContextAckBatch]


class DrafterService(drafter_pb2_grpc.DrafterServicer):
    """Serves several routers and targets; all model work runs on one thread, in the order of arrival.

    A sequence belongs to the router stream that opened it, and goes when that stream ends.
    """

    def __init__(self, runner: DrafterModelRunner, *, executor: Executor | None = None) -> None:
        self._runner = runner
        self._executor = executor or ThreadPoolExecutor(max_workers=1, thread_name_prefix="drafter")
        self._owns_executor = executor is None
        self._held = HeldContexts()
        self._owners: dict[str, Opened] = {}  # by sequence id: the stream that opened it last
        self._fault: str | None = None  # what only a restart of this process cures
        self.num_drafts = 0
        self._queued: dict[int, int] = {}  # by stream: this drafter's share of its router's queue, as last told
        self.lag = DraftLag()

    def register(self, server: grpc.aio.Server) -> None:
        drafter_pb2_grpc.add_DrafterServicer_to_server(self, server)

    def check_health(self) -> None:
        """Raises `Unavailable` for what only a restart of this process cures."""
        if self._fault is not None:
            raise Unavailable(self._fault)

    @property
    def num_sequences(self) -> int:
        return len(self._held)

    @property
    def queued_sequences(self) -> int:
        """This drafter's share of all routers' queues: for scaling the pool."""
        return sum(self._queued.values())

    async def close(self) -> None:
        if self._owns_executor:
            self._executor.shutdown(wait=False)

    async def Info(
        self,
        request: drafter_pb2.InfoRequest,
        context: grpc.aio.ServicerContext[drafter_pb2.InfoRequest, drafter_pb2.DrafterInfo],
    ) -> drafter_pb2.DrafterInfo:
        return drafter_info_to_pb(self._runner.info)

    # --- routers

    async def Drafts(  # type: ignore[override]  # a coroutine that writes, so that it ends when its client does
        self, request_iterator: AsyncIterator[drafter_pb2.DraftRequest], context: DraftsContext
    ) -> None:
        opened: Opened = {}
        answers: set[asyncio.Task[None]] = set()
        write_lock = asyncio.Lock()
        try:
            async for message in request_iterator:
                request = draft_request_from_pb(message)
                _check_room(opened, request, len(answers))
                self._queued[id(opened)] = request.queued_sequences
                prepared = self._release_and_open(request, opened)
                task = asyncio.create_task(self._answer(request, prepared, context, write_lock))
                answers.add(task)
                task.add_done_callback(answers.discard)
            await _silence(answers, write_lock)
        except DFlashError as error:
            await _silence(answers, write_lock)
            await context.abort(grpc_status(error), error.message)
        finally:
            for task in answers:
                task.cancel()
            self._queued.pop(id(opened), None)
            self._release([key for key in opened.values() if self._owns(opened, key)])

    def _release_and_open(self, request: DraftRequest, opened: Opened) -> asyncio.Future[dict[SequenceKey, int]] | None:
        """Queued at once, so that requests keep their order; the answer need not be waited for here.

        A stream can release only what is its own. It may open what another one has: a router that has dialled again,
        before the end of its old stream is noticed.
        """
        request = replace(request, releases=tuple(key for key in request.releases if self._owns(opened, key)))
        if not request.releases and not request.opens:
            return None
        for key in request.releases:
            opened.pop(key.sequence_id, None)
            del self._owners[key.sequence_id]
            self._held.forget(key)
        for key, _ in request.opens:
            if (older := opened.get(key.sequence_id)) is not None:
                self._held.forget(older)
            opened[key.sequence_id] = key
            self._owners[key.sequence_id] = opened
            self._held.opened(key)
        # Shielded: when the stream ends before this has run, the sequences must go all the same.
        return asyncio.shield(
            asyncio.get_running_loop().run_in_executor(self._executor, self._run_releases_and_opens, request)
        )

    def _owns(self, opened: Opened, key: SequenceKey) -> bool:
        return self._owners.get(key.sequence_id) is opened

    def _run_releases_and_opens(self, request: DraftRequest) -> dict[SequenceKey, int]:
        for key in request.releases:
            self._runner.release(key)
        lengths: dict[SequenceKey, int] = {}
        for key, context_len in request.opens:
            self._runner.open(key, context_len)
            held = self._runner.context_len(key)
            if held is not None:
                lengths[key] = held
        return lengths

    async def _answer(
        self,
        request: DraftRequest,
        prepared: asyncio.Future[dict[SequenceKey, int]] | None,
        context: DraftsContext,
        write_lock: asyncio.Lock,
    ) -> None:
        try:
            if prepared is not None:
                for key, context_len in (await prepared).items():
                    self._held.kept(key, context_len)
            result = await self._draft(request)
        except Exception as error:
            # This batch alone: the router opens its sequences anew.
            self._note(error)
            logger.exception("batch %d failed", request.batch_id)
            result = _failed(request, error)
        async with write_lock:
            await context.write(draft_result_to_pb(result))

    async def _draft(self, request: DraftRequest) -> DraftResult:
        """Holds the batch until its contexts are complete, or will not become so by themselves."""
        if not request.blocks:
            return DraftResult(request.batch_id, ())
        needs = {block.key: block.context_len for block in request.blocks}
        await self._held.wait_for(needs, min(request.wait_ms, _MAX_WAIT_MS) / 1e3)
        self.num_drafts += len(request.blocks)
        ready_at = time.monotonic()
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._run_draft, request, ready_at)

    def _run_draft(self, request: DraftRequest, ready_at: float) -> DraftResult:
        self.lag.note(time.monotonic() - ready_at)
        drafts = draft_blocks(self._runner, request)
        return DraftResult(request.batch_id, drafts, dict(self._runner.stage_times_us))

    def _release(self, keys: list[SequenceKey]) -> None:
        for key in keys:
            del self._owners[key.sequence_id]
            self._held.forget(key)
        self._executor.submit(self._run_releases, keys)

    def _run_releases(self, keys: list[SequenceKey]) -> None:
        for key in keys:
            self._runner.release(key)

    # --- targets

    async def AppendContext(  # type: ignore[override]  # as above
        self, request_iterator: AsyncIterator[drafter_pb2.ContextBatch], context: ContextContext
    ) -> None:
        loop = asyncio.get_running_loop()
        fed: set[SequenceKey] = set()  # by this stream
        try:
            async for batch in request_iterator:
                chunks = context_batch_from_pb(batch)
                acks = await loop.run_in_executor(self._executor, self._runner.append_context, chunks)
                for ack in acks:
                    self._held.appended(ack)
                fed.update(ack.key for ack in acks)
                await context.write(drafter_pb2.ContextAckBatch(acks=[context_ack_to_pb(ack) for ack in acks]))
        except DFlashError as error:
            self._note(error)
            await context.abort(grpc_status(error), error.message)
        finally:
            self._held.source_broke(fed)

    def _note(self, error: Exception) -> None:
        if isinstance(error, DeviceLost):
            self._fault = error.message


async def _silence(answers: set[asyncio.Task[None]], write_lock: asyncio.Lock) -> None:
    """Before a stream's status is sent, for which gRPC wants that no message is on its way any more."""
    async with write_lock:
        for task in answers:
            task.cancel()


def _check_room(opened: Opened, request: DraftRequest, num_unanswered: int) -> None:
    """Raises `Overloaded` for a stream that takes more than its share of this process's memory."""
    if len(opened) + len(request.opens) > MAX_SEQUENCES:
        raise Overloaded(
            f"one stream may open {MAX_SEQUENCES} sequences, has {len(opened)} and opens {len(request.opens)}"
        )
    if num_unanswered >= _MAX_UNANSWERED:
        raise Overloaded(f"{num_unanswered} batches of this stream wait for their answers already")


def _failed(request: DraftRequest, error: Exception) -> DraftResult:
    token_ids, scores = np.empty((0, 0), np.int32), np.empty((0, 0), np.float32)
    drafts = [Draft(block.key, block.context_len, token_ids, scores, error=repr(error)) for block in request.blocks]
    return DraftResult(request.batch_id, tuple(drafts))
