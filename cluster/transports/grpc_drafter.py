"""A drafter as a router sees it over gRPC, and the connections to all drafters that are listed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import replace
from itertools import count

import grpc

from cluster.router import Router
from cluster.status import error_of_rpc
from cluster.transports.authentication import OPEN, DataPlaneSecurity
from cluster.transports.client_stream import ClientStream
from cluster.transports.dialer import Dialer
from cluster.transports.grpc_options import open_channel
from cluster.wire.drafts import check_drafts, draft_request_to_pb, draft_result_from_pb, drafter_info_from_pb
from cluster.wire.twins import warm_up
from dflash_core.contracts import DrafterInfo, DraftRequest, DraftResult
from dflash_core.errors import ProtocolError, Unavailable
from protos import drafter_pb2, drafter_pb2_grpc

logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 5.0
_STUCK_AFTER_S = 30.0  # beyond the time that a batch may wait for its context


class GrpcDrafter:
    """Implements `dflash_core.contracts.Drafter` over one stream; when that ends it is of no use any more."""

    def __init__(
        self,
        info: DrafterInfo,
        call: ClientStream[drafter_pb2.DraftRequest, drafter_pb2.DraftResult],
    ) -> None:
        self.info = info
        self._call = call
        self._batch_ids = count(1)  # of the stream: the router's own may repeat
        self._pending: dict[int, asyncio.Future[DraftResult]] = {}
        self._closed: str | None = None

    async def draft(self, request: DraftRequest) -> DraftResult:
        """Raises `Unavailable` when the stream is broken, breaks, or does not answer for long."""
        if self._closed is not None:
            raise Unavailable(self._closed)
        batch_id = next(self._batch_ids)
        future: asyncio.Future[DraftResult] = asyncio.get_running_loop().create_future()
        self._pending[batch_id] = future
        try:
            async with asyncio.timeout(request.wait_ms / 1e3 + _STUCK_AFTER_S):
                await self._call.write(draft_request_to_pb(replace(request, batch_id=batch_id)))
                result = await future
        except TimeoutError:
            self._call.cancel()
            raise Unavailable(f"drafter {self.info.address} did not answer batch {batch_id}") from None
        finally:
            self._pending.pop(batch_id, None)
        return replace(result, batch_id=request.batch_id)

    async def read(self) -> None:
        """Hands out answers until the stream ends; raises what its end stands for."""
        try:
            while (message := await self._call.read()) is not None:
                future = self._pending.get(message.batch_id)
                if future is None or future.done():
                    continue
                try:
                    result = draft_result_from_pb(message)
                    check_drafts(result, self.info)
                    future.set_result(result)
                except ProtocolError as error:
                    future.set_exception(error)
            raise Unavailable(f"{self._call.what}: its stream ended")
        finally:
            self._closed = f"{self._call.what}: its stream ended"
            for future in self._pending.values():
                if not future.done():
                    future.set_exception(Unavailable(self._closed))


class DrafterDialer:
    """Keeps a router connected to the drafters that are listed; to be closed before the router."""

    def __init__(self, router: Router, security: DataPlaneSecurity = OPEN) -> None:
        self._router = router
        self._security = security
        self._dialer = Dialer(self._session, "drafter")
        warm_up()

    def set_endpoints(self, addresses: Iterable[str]) -> None:
        """As often as the pool is listed. A drafter that is missing keeps its stream while that works."""
        self._dialer.set_endpoints(addresses)

    async def close(self) -> None:
        await self._dialer.close()

    async def _session(self, address: str) -> None:
        async with open_channel(address, self._security) as channel:
            stub = drafter_pb2_grpc.DrafterStub(channel)
            try:
                info = drafter_info_from_pb(
                    await stub.Info(drafter_pb2.InfoRequest(), timeout=_CONNECT_TIMEOUT_S, wait_for_ready=True)
                )
            except grpc.RpcError as error:
                raise error_of_rpc(error, f"drafter {address}") from None
            drafter = GrpcDrafter(replace(info, address=address), ClientStream(stub.Drafts, f"drafter {address}"))
            self._router.add_drafter(drafter)
            self._dialer.worked(address)
            try:
                await drafter.read()
            finally:
                self._router.remove_drafter(drafter, "its stream ended")
