"""The target's side of its stream: finds a router, runs the rounds it is sent, ships features to the drafters.

runner = TargetRunner.load(...)
agent = TargetAgent(runner, routers=lambda: addresses_as_last_listed)
agent.start()                       # on the replica's event loop
…
agent.check_health()                # raises Unavailable for what only a restart cures: a stuck round, a lost GPU
await agent.drain("scaled in")      # goodbye, after the round that runs
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace

import grpc
import grpc.aio

from cluster.transports.authentication import OPEN, DataPlaneSecurity
from cluster.transports.client_stream import ClientStream
from cluster.transports.context_sender import GrpcContextSink
from cluster.transports.dialer import pause_s
from cluster.transports.grpc_options import open_channel
from cluster.transports.runner_protocols import TargetModelRunner
from cluster.wire.generations import failure_to_pb
from cluster.wire.rounds import round_request_from_pb, round_result_to_pb, target_info_to_pb
from dflash_core.contracts import RoundRequest, RoundResult
from dflash_core.errors import DeadlineExceeded, DFlashError, ModelLost, Overloaded, Unavailable
from protos import router_pb2, router_pb2_grpc

logger = logging.getLogger(__name__)

_STATUS_TIMEOUT_S = 1.0

LeadCall = ClientStream[router_pb2.TargetMessage, router_pb2.LeadMessage]


class TargetAgent:
    """Serves one router at a time: its stream is the lease. Whatever ends it ends the sequences too.

    `routers()` gives the addresses known at present; among them the one with the fewest targets is dialled, and
    others when it refuses.
    """

    def __init__(
        self,
        runner: TargetModelRunner,
        routers: Callable[[], list[str]],
        *,
        executor: Executor | None = None,
        context_sink: GrpcContextSink | None = None,
        security: DataPlaneSecurity = OPEN,
    ) -> None:
        self._security = security
        self._runner = runner
        self._routers = routers
        self._executor = executor or ThreadPoolExecutor(max_workers=1, thread_name_prefix="target")
        self._owns_executor = executor is None
        self._context_sink = context_sink or GrpcContextSink(security=security)
        self._task: asyncio.Task[None] | None = None
        self._call: LeadCall | None = None
        self._idle = asyncio.Event()  # no round runs
        self._idle.set()
        self._is_draining = False
        self._fault: str | None = None  # what only a restart of this process cures
        self._refused_until: dict[str, float] = {}
        self._is_lost = False  # the model's device: no router can use this target any more
        self.epoch = 0  # raised each time a router is lost
        self.router_address: str | None = None  # while a router leads
        self.num_rounds = 0
        self._queued_sequences = 0

    @property
    def queued_sequences(self) -> int:
        """This target's share of its router's queue, as that last told: for scaling the pool.

        A router tells it with each round; without sequences there are none, and nothing waits.
        """
        return self._queued_sequences if self._runner.num_sequences else 0

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="target agent")

    def check_health(self) -> None:
        """Raises `Unavailable` for what only a restart of this process cures."""
        if self._fault is not None:
            raise Unavailable(self._fault)
        if self._task is not None and self._task.done() and not self._is_draining:
            raise Unavailable("the target's agent has ended")

    async def drain(self, reason: str = "the target is draining") -> None:
        """Lets the round that runs end, says goodbye and stops. The router moves the sequences elsewhere."""
        self._is_draining = True
        if self._call is not None:
            try:
                await self._idle.wait()
                await self._call.write(router_pb2.TargetMessage(goodbye=router_pb2.Goodbye(reason=reason)))
                await self._call.done_writing()
            except DFlashError as error:
                logger.info("no goodbye: %s", error.message)
        await self.close()

    async def close(self) -> None:
        """Stops without a goodbye."""
        self._is_draining = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._context_sink.close()
        if self._owns_executor:
            self._executor.shutdown(wait=False)

    # --- finding a router

    async def _run(self) -> None:
        failures = 0
        while not (self._is_draining or self._is_lost):
            address = await self._choose_router()
            if address is not None:
                try:
                    async with open_channel(address, self._security) as channel:
                        await self._serve(address, channel)
                    failures = 0
                except Overloaded as error:
                    logger.info("%s", error.message)
                    self._refused_until[address] = time.monotonic() + 1.0
                except DFlashError as error:
                    logger.warning("%s", error.message)
                finally:
                    if self.router_address is not None:
                        failures = 0
                        await self._lose_router()
            failures += 1
            await asyncio.sleep(pause_s(failures))

    async def _lose_router(self) -> None:
        """Nothing that the lost router sent may matter to the next: its sequences go, and the epoch tells."""
        self.router_address = None
        self._call = None
        self.epoch += 1
        await asyncio.get_running_loop().run_in_executor(self._executor, self._runner.release_all)

    async def _choose_router(self) -> str | None:
        now = time.monotonic()
        addresses = [address for address in self._routers() if self._refused_until.get(address, 0.0) <= now]
        loads = await asyncio.gather(*(self._num_targets(address) for address in addresses))
        known = [(load, random.random(), address) for load, address in zip(loads, addresses, strict=True) if load >= 0]
        return min(known)[2] if known else None

    async def _num_targets(self, address: str) -> int:
        """−1 where the router takes none."""
        try:
            async with open_channel(address, self._security) as channel:
                stub = router_pb2_grpc.RouterStub(channel)
                status = await stub.Status(router_pb2.RouterStatusRequest(), timeout=_STATUS_TIMEOUT_S)
        except grpc.RpcError as error:
            refused = error.code() is grpc.StatusCode.UNAUTHENTICATED  # another secret here than there
            logger.log(logging.WARNING if refused else logging.DEBUG, "router %s: %s", address, error.details())
            return -1
        return -1 if status.draining else status.num_targets

    # --- serving it

    async def _serve(self, address: str, channel: grpc.aio.Channel) -> None:
        """Returns after a goodbye; raises the error that the end of the stream stands for."""
        call = ClientStream(router_pb2_grpc.RouterStub(channel).Lead, f"router {address}")
        info = replace(self._runner.info, epoch=self.epoch)
        await call.write(router_pb2.TargetMessage(info=target_info_to_pb(info)))
        self._call = call
        while (message := await call.read()) is not None:
            if self.router_address is None:
                logger.info("router %s leads, epoch %d", address, self.epoch)
                self.router_address = address
            if message.WhichOneof("message") == "goodbye":
                logger.info("router %s: goodbye: %s", address, message.goodbye.reason)
                return
            self._idle.clear()
            try:
                answer = await self._answer(message.request)
                await call.write(router_pb2.TargetMessage(result=answer))
            finally:
                self._idle.set()
        raise Unavailable(f"router {address}: its stream ended without a goodbye")

    async def _answer(self, pb: router_pb2.RoundRequest) -> router_pb2.RoundResult:
        """The round's result, or the failure of the round as a whole; the target stays either way.

        But for `ModelLost`: it is raised, and the end of the stream sends the sequences elsewhere.
        """
        try:
            result = await self._run_round(round_request_from_pb(pb))
        except ModelLost as error:
            self._fault, self._is_lost = error.message, True
            raise
        except Exception as error:
            logger.exception("round %d failed", pb.round_id)
            return router_pb2.RoundResult(round_id=pb.round_id, epoch=self.epoch, failure=failure_to_pb(error))
        return round_result_to_pb(replace(result, epoch=self.epoch))

    async def _run_round(self, request: RoundRequest) -> RoundResult:
        loop = asyncio.get_running_loop()
        self._queued_sequences = request.queued_sequences
        try:
            async with asyncio.timeout(request.timeout_ms / 1e3):
                output = await loop.run_in_executor(self._executor, self._runner.run_round, request)
        except TimeoutError:
            # The thread cannot be stopped: whoever watches this process must restart it.
            self._fault = f"round {request.round_id} has been running for more than {request.timeout_ms} ms"
            raise DeadlineExceeded(self._fault) from None
        self.num_rounds += 1
        # Before the result: the features are on their way when the router asks for drafts.
        for address, chunks in output.context.items():
            self._context_sink.send(address, chunks)
        return output.result
