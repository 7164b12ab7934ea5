"""A target's way to the drafters: context features on streams of their own, dropped rather than waited for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque

from cluster.transports.authentication import OPEN, DataPlaneSecurity
from cluster.transports.client_stream import ClientStream
from cluster.transports.dialer import pause_s
from cluster.transports.grpc_options import open_channel
from cluster.wire.drafts import context_chunk_to_pb
from dflash_core.contracts import ContextChunk, ContextStatus
from dflash_core.errors import DFlashError, Unavailable
from protos import drafter_pb2, drafter_pb2_grpc

logger = logging.getLogger(__name__)

MAX_BATCH_BYTES = 1 << 20  # larger messages hold up the pings and each other
_MAX_QUEUED_BYTES = 64 << 20


class GrpcContextSink:
    """Implements `dflash_core.contracts.ContextSink`; to be used on one event loop.

    What a drafter cannot take in time is dropped: it reports the gap, and the router asks for a refill.
    """

    def __init__(self, max_queued_bytes: int = _MAX_QUEUED_BYTES, security: DataPlaneSecurity = OPEN) -> None:
        self._security = security
        self._max_queued_bytes = max_queued_bytes
        self._pipes: dict[str, _Pipe] = {}

    @property
    def num_dropped(self) -> int:
        """Chunks that did not fit the queues of the drafters known at present."""
        return sum(pipe.num_dropped for pipe in self._pipes.values())

    def send(self, drafter_address: str, chunks: list[ContextChunk]) -> None:
        pipe = self._pipes.get(drafter_address)
        if pipe is None:
            # Drafters come and go, and each new one has another address.
            self._pipes = {address: pipe for address, pipe in self._pipes.items() if not pipe.is_idle}
            pipe = self._pipes[drafter_address] = _Pipe(drafter_address, self._max_queued_bytes, self._security)
        pipe.send(chunks)

    async def close(self) -> None:
        for pipe in self._pipes.values():
            await pipe.close()
        self._pipes.clear()


class _Pipe:
    """The queue and the stream to one drafter. The stream is opened by the first chunk, and again after it broke."""

    def __init__(self, address: str, max_queued_bytes: int, security: DataPlaneSecurity) -> None:
        self._address = address
        self._security = security
        self._max_queued_bytes = max_queued_bytes
        self._queue: deque[ContextChunk] = deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failures = 0
        self._retry_at = 0.0
        self.num_dropped = 0

    @property
    def is_idle(self) -> bool:
        """Its stream is gone, and the pause after that is over."""
        return (self._task is None or self._task.done()) and time.monotonic() >= self._retry_at

    def send(self, chunks: list[ContextChunk]) -> None:
        if self._task is None or self._task.done():
            if time.monotonic() < self._retry_at:
                self.num_dropped += len(chunks)
                return
            self._task = asyncio.create_task(self._run(), name=f"features to {self._address}")
        for chunk in chunks:
            num_bytes = len(chunk.features.data)
            if self._queued_bytes + num_bytes > self._max_queued_bytes:
                self.num_dropped += 1
                continue
            self._queue.append(chunk)
            self._queued_bytes += num_bytes
        self._wake.set()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            async with open_channel(self._address, self._security) as channel:
                method = drafter_pb2_grpc.DrafterStub(channel).AppendContext
                call = ClientStream(method, f"features to drafter {self._address}")
                acks = asyncio.create_task(self._read_acks(call))
                writes = asyncio.create_task(self._write_all(call))
                try:
                    # A drafter that is gone while there is nothing to send shows in reading alone.
                    await asyncio.wait({acks, writes}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    writes.cancel()
                    acks.cancel()
                    ended = await asyncio.gather(acks, writes, return_exceptions=True)
                for end in ended:
                    if isinstance(end, Exception):
                        raise end
                raise Unavailable(f"{call.what}: its stream ended")
        except DFlashError as error:
            self._failures += 1
            self._retry_at = time.monotonic() + pause_s(self._failures)
            logger.warning("%s", error.message)
        finally:
            self.num_dropped += len(self._queue)
            self._queue.clear()
            self._queued_bytes = 0

    async def _write_all(self, call: ClientStream[drafter_pb2.ContextBatch, drafter_pb2.ContextAckBatch]) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                await call.write(self._next_batch())
                self._failures = 0

    def _next_batch(self) -> drafter_pb2.ContextBatch:
        batch, num_bytes = drafter_pb2.ContextBatch(), 0
        while self._queue and (num_bytes == 0 or num_bytes + len(self._queue[0].features.data) <= MAX_BATCH_BYTES):
            chunk = self._queue.popleft()
            num_bytes += len(chunk.features.data)
            batch.chunks.append(context_chunk_to_pb(chunk))
        self._queued_bytes -= num_bytes
        return batch

    async def _read_acks(self, call: ClientStream[drafter_pb2.ContextBatch, drafter_pb2.ContextAckBatch]) -> None:
        """The drafter tells its router what it lacks; here the answers are only read, so that none pile up."""
        while (acks := await call.read()) is not None:
            for ack in acks.acks:
                if ack.status != ContextStatus.OK.value:
                    logger.debug("drafter %s: %s for %s", self._address, ack.status, ack.key.sequence_id)
