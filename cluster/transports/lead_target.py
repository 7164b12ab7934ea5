"""A target as its router sees it over the stream that the target opened."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from cluster.transports.grpc_options import STREAM_ERRORS
from cluster.wire.generations import failure_from_pb
from cluster.wire.rounds import check_round_result, round_request_to_pb, round_result_from_pb
from dflash_core.contracts import RoundRequest, RoundResult, TargetInfo
from dflash_core.errors import Unavailable
from protos import router_pb2

_GRACE_S = 1.0  # beyond the round's own deadline, for the target to report that it was missed


class LeadTarget:
    """Implements `dflash_core.contracts.Target`. `closed` is set once the stream cannot be used any more."""

    def __init__(self, info: TargetInfo, write: Callable[[router_pb2.LeadMessage], Awaitable[None]]) -> None:
        self.info = info
        self.closed = asyncio.Event()
        self.reason = ""
        self._write = write
        self._pending: dict[int, asyncio.Future[RoundResult]] = {}

    @property
    def num_rounds_in_flight(self) -> int:
        return len(self._pending)

    async def run_round(self, request: RoundRequest) -> RoundResult:
        if self.closed.is_set():
            raise Unavailable(f"target {self.info.model!r}: {self.reason}")
        future: asyncio.Future[RoundResult] = asyncio.get_running_loop().create_future()
        self._pending[request.round_id] = future
        try:
            async with asyncio.timeout(request.timeout_ms / 1e3 + _GRACE_S):
                await self._write(router_pb2.LeadMessage(request=round_request_to_pb(request)))
                return await future
        except TimeoutError:
            self.close(f"round {request.round_id} was not answered within {request.timeout_ms} ms")
            raise Unavailable(f"target {self.info.model!r}: {self.reason}") from None
        except STREAM_ERRORS as error:
            self.close(f"its stream broke: {error!r}")
            raise Unavailable(f"target {self.info.model!r}: {self.reason}") from None
        finally:
            del self._pending[request.round_id]

    def receive(self, pb: router_pb2.RoundResult) -> None:
        """Raises `ProtocolError` for a malformed result."""
        future = self._pending.get(pb.round_id)
        if future is None or future.done():
            return  # of a round that was given up
        if pb.HasField("failure"):
            future.set_exception(failure_from_pb(pb.failure))
        else:
            check_round_result(pb, self.info)
            future.set_result(round_result_from_pb(pb))

    def close(self, reason: str) -> None:
        if self.closed.is_set():
            return
        self.reason = reason
        self.closed.set()
        for future in self._pending.values():
            if not future.done():
                future.set_exception(Unavailable(f"target {self.info.model!r}: {reason}"))
                future.exception()  # told to whoever waits; where that round was cancelled meanwhile, to nobody
