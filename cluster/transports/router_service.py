"""The router's gRPC server: gateways submit, targets lend themselves.

router = Router(settings)
service = RouterService(router, max_targets=lambda: share_of_targets)
running = await start_server(service.register, host, ports)      # running.address is what others dial
drafters = DrafterDialer(router); drafters.set_endpoints([...])  # as often as they are listed
…
await service.drain(timeout_s=20); await drafters.close(); await router.close(); await running.stop()
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import grpc
import grpc.aio
import numpy as np

from cluster.requests import TokenEvent
from cluster.router import Router
from cluster.status import grpc_status
from cluster.transports.lead_target import LeadTarget
from cluster.wire.generations import events_to_pb, generation_from_pb
from cluster.wire.rounds import target_info_from_pb, target_info_to_pb
from dflash_core.errors import DFlashError, ProtocolError, Unavailable
from protos import router_pb2, router_pb2_grpc

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[router_pb2.GatewayMessage, router_pb2.RouterMessage]
LeadContext = grpc.aio.ServicerContext[router_pb2.TargetMessage, router_pb2.LeadMessage]

PEERS_KEY = "dflash-peers"  # trailing metadata of a refused target: where else it may ask
_POLL_S = 0.02
_NO_TOKENS = np.empty(0, dtype=np.int32)


class _GatewayStream:
    """The sink of one gateway: what was put since the last message goes into the next one."""

    def __init__(self) -> None:
        self._events: list[TokenEvent] = []
        self._messages: list[router_pb2.RouterMessage] = []
        self._wake = asyncio.Event()
        self._has_ended = False

    def put(self, events: list[TokenEvent]) -> None:
        self._events += events
        self._wake.set()

    def say(self, message: router_pb2.RouterMessage) -> None:
        self._messages.append(message)
        self._wake.set()

    def end(self) -> None:
        self._has_ended = True
        self._wake.set()

    async def messages(self) -> AsyncIterator[router_pb2.RouterMessage]:
        while True:
            await self._wake.wait()
            self._wake.clear()
            messages, self._messages = self._messages, []
            events, self._events = self._events, []
            for message in messages:
                yield message
            # A gateway's message holds one entry per sequence and round; two rounds may have passed.
            if events:
                yield router_pb2.RouterMessage(tokens=events_to_pb(events))
            if self._has_ended:
                return


class RouterService(router_pb2_grpc.RouterServicer):
    """`max_targets()` says how many targets this router may hold at present, its share; `peers()` names the others.

    `TargetShare` finds both out.
    """

    def __init__(
        self,
        router: Router,
        *,
        max_targets: Callable[[], int | None] = lambda: None,
        peers: Callable[[], list[str]] = list,
    ) -> None:
        self.router = router
        self._max_targets = max_targets
        self._peers = peers
        self._gateways: set[_GatewayStream] = set()
        self._targets: dict[LeadTarget, None] = {}  # in the order of their coming
        self._is_draining = False

    def register(self, server: grpc.aio.Server) -> None:
        router_pb2_grpc.add_RouterServicer_to_server(self, server)

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    @property
    def num_rounds_in_flight(self) -> int:
        """On all targets here: for scaling the pool."""
        return sum(target.num_rounds_in_flight for target in self._targets)

    def limit_targets(self, max_targets: Callable[[], int | None], peers: Callable[[], list[str]]) -> None:
        """As the arguments of the constructor, for who needs the service to find them out."""
        self._max_targets, self._peers = max_targets, peers

    def give_back_target(self, reason: str) -> None:
        """Says goodbye to the target that came last, whose sequences go on here; nothing where there is none."""
        if self._targets:
            next(reversed(self._targets)).close(reason)

    async def drain(self, timeout_s: float, reason: str = "the router is draining") -> None:
        """Sends new sequences elsewhere, finishes those that run within the timeout, then gives the targets back."""
        self._is_draining = True
        for gateway in self._gateways:
            gateway.say(router_pb2.RouterMessage(goodbye=router_pb2.Goodbye(reason=reason)))
        try:
            async with asyncio.timeout(timeout_s):
                while self.router.num_active:  # nothing announces the last one
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            logger.warning("drained with %d sequences left after %.1f s", self.router.num_active, timeout_s)
        for target in list(self._targets):
            target.close(reason)
        for gateway in self._gateways:
            gateway.end()

    # --- gateways

    async def Submit(  # type: ignore[override]  # a coroutine that writes, so that it ends when its client does
        self, request_iterator: AsyncIterator[router_pb2.GatewayMessage], context: Context
    ) -> None:
        gateway = _GatewayStream()
        gateway.say(self._hello())
        if self._is_draining:
            gateway.say(router_pb2.RouterMessage(goodbye=router_pb2.Goodbye(reason="the router is draining")))
        self._gateways.add(gateway)
        reader = asyncio.create_task(self._read_gateway(request_iterator, gateway))
        try:
            async for message in gateway.messages():
                await context.write(message)
            if reader.done() and (error := reader.exception()) is not None:
                await context.abort(grpc_status(error), str(error))
        finally:
            self._gateways.discard(gateway)
            self.router.release_client(gateway)
            reader.cancel()

    async def _read_gateway(self, messages: AsyncIterator[router_pb2.GatewayMessage], gateway: _GatewayStream) -> None:
        """Ends the stream when the gateway does; a frozen one looks the same."""
        try:
            async for message in messages:
                self._take(message, gateway)
        finally:
            gateway.end()

    def _take(self, message: router_pb2.GatewayMessage, gateway: _GatewayStream) -> None:
        """A request at fault ends with its own error event; only what is no request at all ends the stream."""
        match message.WhichOneof("message"):
            case "generation":
                try:
                    if self._is_draining:
                        raise Unavailable("the router is draining")
                    self.router.submit(generation_from_pb(message.generation), gateway)
                except DFlashError as error:
                    gateway.put([TokenEvent(message.generation.sequence_id, _NO_TOKENS, error=error)])
            case "cancel":
                self.router.cancel(message.cancel.sequence_id, gateway)
            case _:
                raise ProtocolError("a gateway's message must hold a generation or a cancel")

    def _hello(self) -> router_pb2.RouterMessage:
        info = None if self._is_draining else self.router.target_info
        hello = router_pb2.RouterHello(target=None if info is None else target_info_to_pb(info))
        return router_pb2.RouterMessage(hello=hello)

    def _say_hello_again(self) -> None:
        """Gateways must know whether a round can run here."""
        for gateway in self._gateways:
            gateway.say(self._hello())

    # --- targets

    async def Lead(  # type: ignore[override]  # as above
        self, request_iterator: AsyncIterator[router_pb2.TargetMessage], context: LeadContext
    ) -> None:
        target = await self._admit(request_iterator, context)
        reader = asyncio.create_task(self._read_target(request_iterator, target))
        try:
            await target.closed.wait()
            if not reader.done():
                # We end it: a draining router, or a target that did not answer.
                await context.write(router_pb2.LeadMessage(goodbye=router_pb2.Goodbye(reason=target.reason)))
            elif not reader.cancelled() and (error := reader.exception()) is not None:
                await context.abort(grpc_status(error), str(error))
        finally:
            target.close("its stream broke")
            self._targets.pop(target, None)
            self.router.remove_target(target, target.reason)
            self._say_hello_again()
            reader.cancel()

    async def _admit(self, messages: AsyncIterator[router_pb2.TargetMessage], context: LeadContext) -> LeadTarget:
        """Aborts the stream where this target cannot be taken."""
        try:
            first = await anext(messages, None)
        except ProtocolError as error:  # bytes that are no message
            await context.abort(grpc_status(error), error.message)
        if first is None or first.WhichOneof("message") != "info":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a target's first message must be its info")
        assert first is not None
        try:
            target = LeadTarget(target_info_from_pb(first.info), context.write)
        except ProtocolError as error:
            await context.abort(grpc_status(error), error.message)
            raise  # abort has raised; this tells mypy
        if self._is_draining:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the router is draining")
        share = self._max_targets()
        if share is not None and self.router.num_targets >= share:
            context.set_trailing_metadata(((PEERS_KEY, ",".join(self._peers())),))
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"this router has {self.router.num_targets} targets, its share is {share}",
            )
        try:
            self.router.add_target(target)
        except DFlashError as error:
            await context.abort(grpc_status(error), error.message)
            raise  # abort has raised; this tells mypy
        self._targets[target] = None
        self._say_hello_again()
        return target

    async def _read_target(self, messages: AsyncIterator[router_pb2.TargetMessage], target: LeadTarget) -> None:
        reason = "its stream ended without a goodbye"
        try:
            async for message in messages:
                match message.WhichOneof("message"):
                    case "result":
                        target.receive(message.result)
                    case "goodbye":
                        reason = f"it said goodbye: {message.goodbye.reason}"
                        return
                    case _:
                        raise ProtocolError("a target's message must hold a result or a goodbye")
        finally:
            target.close(reason)

    # --- load

    async def Status(
        self,
        request: router_pb2.RouterStatusRequest,
        context: grpc.aio.ServicerContext[router_pb2.RouterStatusRequest, router_pb2.RouterStatus],
    ) -> router_pb2.RouterStatus:
        return router_pb2.RouterStatus(
            num_targets=self.router.num_targets,
            num_drafters=self.router.num_drafters,
            num_running=self.router.num_running,
            num_waiting=self.router.num_waiting,
            draining=self._is_draining,
        )
