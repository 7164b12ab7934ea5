"""A router as a gateway sees it: one stream for all sequences."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import grpc.aio
import numpy as np

from cluster.requests import EventSink, GenerationRequest, TokenEvent
from cluster.transports.client_stream import ClientStream
from cluster.wire.generations import events_from_pb, generation_to_pb
from cluster.wire.rounds import target_info_from_pb
from dflash_core.contracts import TargetInfo
from dflash_core.errors import DFlashError, Unavailable
from protos import router_pb2, router_pb2_grpc

logger = logging.getLogger(__name__)


class RouterClient:
    """Lives as long as its stream: `async with open_channel(address) as channel: await RouterClient(…).run()`.

    `submit` and `cancel` never block; messages go out in their order. When the stream ends, every sequence on it gets
    a last event with `Unavailable`. `on_change` is called whenever `is_ready` may have changed while the stream lives.
    """

    def __init__(
        self, address: str, channel: grpc.aio.Channel, on_change: Callable[[RouterClient], None] = lambda _: None
    ) -> None:
        self.address = address
        self._on_change = on_change
        self.target_info: TargetInfo | None = None  # of the router's targets; None: it cannot run a round now
        self.is_draining = False
        self.said_hello = asyncio.Event()
        self._call = ClientStream(router_pb2_grpc.RouterStub(channel).Submit, f"router {address}")
        self._outbox: asyncio.Queue[router_pb2.GatewayMessage] = asyncio.Queue()
        self._sinks: dict[str, EventSink] = {}
        self._end: DFlashError | None = None

    @property
    def is_ready(self) -> bool:
        return self.target_info is not None and not self.is_draining and self._end is None

    @property
    def num_active(self) -> int:
        return len(self._sinks)

    def submit(self, request: GenerationRequest, sink: EventSink) -> None:
        """Raises `Unavailable` once the stream has ended."""
        if self._end is not None:
            raise Unavailable(self._end.message)
        self._sinks[request.sequence_id] = sink
        self._outbox.put_nowait(router_pb2.GatewayMessage(generation=generation_to_pb(request)))

    def cancel(self, sequence_id: str) -> None:
        """No further event follows. An unknown id may just be done."""
        if self._sinks.pop(sequence_id, None) is not None and self._end is None:
            cancel = router_pb2.Cancel(sequence_id=sequence_id)
            self._outbox.put_nowait(router_pb2.GatewayMessage(cancel=cancel))

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenEvent]:
        """The events of one request; raises its error. Closing the iterator cancels it on the router."""
        queue = _Queue()
        self.submit(request, queue)
        try:
            while True:
                for event in await queue.events.get():
                    if event.error is not None:
                        raise event.error
                    yield event
                    if event.is_last:
                        return
        finally:
            self.cancel(request.sequence_id)

    async def run(self) -> None:
        """Sends and receives until the stream ends; returns after a goodbye, raises `DFlashError` otherwise."""
        sender = asyncio.create_task(self._send())
        end: DFlashError = Unavailable(f"router {self.address}: its stream ended")
        try:
            while (message := await self._call.read()) is not None:
                self._take(message)
            if not self.is_draining:
                raise end
        except DFlashError as error:
            end = error
            raise
        finally:
            sender.cancel()
            self._call.cancel()
            self._close(end)

    async def _send(self) -> None:
        try:
            while True:
                await self._call.write(await self._outbox.get())
        except DFlashError as error:
            logger.debug("%s", error.message)  # reading tells the same and ends the client

    def _take(self, message: router_pb2.RouterMessage) -> None:
        match message.WhichOneof("message"):
            case "hello":
                has_target = message.hello.HasField("target")
                self.target_info = target_info_from_pb(message.hello.target) if has_target else None
                self.said_hello.set()
                self._on_change(self)
            case "goodbye":
                logger.info("router %s: goodbye: %s", self.address, message.goodbye.reason)
                self.is_draining = True
                self._on_change(self)
            case "tokens":
                self._hand_out(events_from_pb(message.tokens))
            case _:
                logger.warning("router %s sent a message of an unknown kind", self.address)

    def _hand_out(self, events: list[TokenEvent]) -> None:
        batches: dict[EventSink, list[TokenEvent]] = {}
        for event in events:
            sink = self._sinks.get(event.sequence_id)
            if sink is None:
                continue  # cancelled meanwhile
            if event.is_last:
                del self._sinks[event.sequence_id]
            batches.setdefault(sink, []).append(event)
        for sink, batch in batches.items():
            sink.put(batch)

    def _close(self, end: DFlashError) -> None:
        self._end = end
        sinks, self._sinks = self._sinks, {}
        error = Unavailable(end.message)
        for sequence_id, sink in sinks.items():
            sink.put([TokenEvent(sequence_id, np.empty(0, np.int32), error=error)])


class _Queue:
    def __init__(self) -> None:
        self.events: asyncio.Queue[list[TokenEvent]] = asyncio.Queue()

    def put(self, events: list[TokenEvent]) -> None:
        self.events.put_nowait(events)
