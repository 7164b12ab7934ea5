"""A router's share of the targets: how many it may lead while its peers lead fewer.

share = TargetShare(service, security)      # to be made before the service takes targets: it is asked for each
await share.update(addresses_of_peers)      # as often as routers are listed

Routers come and go, as targets do, and a target stays with its router as long as the stream between them. So that a
new router gets targets, one that leads more than its share gives one back: it says goodbye, the target dials whoever
leads the fewest, and its sequences are prefilled on another target here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import grpc

from cluster.transports.authentication import OPEN, DataPlaneSecurity
from cluster.transports.grpc_options import open_channel
from cluster.transports.router_service import RouterService
from protos import router_pb2, router_pb2_grpc

logger = logging.getLogger(__name__)

_STATUS_TIMEOUT_S = 1.0
_PATIENCE = 5  # updates until a target that was given back must have found its router


class TargetShare:
    """Of the targets that lead somewhere, rounded up; all of them while no peer answers."""

    def __init__(self, service: RouterService, security: DataPlaneSecurity = OPEN) -> None:
        self._service = service
        self._security = security
        self._peers: list[str] = []
        self._peers_targets: list[int] = []  # of those that answered and are not draining
        self._total_before = 0  # targets of all routers, when one was given back last
        self._patience = 0
        service.limit_targets(self.max_targets, lambda: self._peers)

    def max_targets(self) -> int | None:
        """With one that asks to be led: it may go where it evens things out. None: any number."""
        if not self._peers_targets:
            return None
        return share_of(self._num_targets + sum(self._peers_targets) + 1, len(self._peers_targets) + 1)

    async def update(self, peers: Sequence[str]) -> None:
        """Asks every peer how many targets it leads, and gives one back where that is fair."""
        statuses = await asyncio.gather(*(self._ask(address) for address in peers))
        answered = [
            (address, status.num_targets)
            for address, status in zip(peers, statuses, strict=True)
            if status is not None and not status.draining
        ]
        self._peers = [address for address, _ in answered]
        self._peers_targets = [num_targets for _, num_targets in answered]
        self._give_back()

    def _give_back(self) -> None:
        total = self._num_targets + sum(self._peers_targets)
        self._patience -= 1
        if self._patience > 0 and total < self._total_before:
            return  # the one given back has not arrived: with it the shares are others
        if not self._peers_targets or self._num_targets <= share_of(total, len(self._peers_targets) + 1):
            return
        self._total_before, self._patience = total, _PATIENCE
        self._service.give_back_target("another router leads fewer")

    @property
    def _num_targets(self) -> int:
        return self._service.router.num_targets

    async def _ask(self, address: str) -> router_pb2.RouterStatus | None:
        try:
            async with open_channel(address, self._security) as channel:
                stub = router_pb2_grpc.RouterStub(channel)
                return await stub.Status(router_pb2.RouterStatusRequest(), timeout=_STATUS_TIMEOUT_S)
        except grpc.RpcError as error:
            logger.debug("router %s: %s", address, error.details())
            return None


def share_of(num_targets: int, num_routers: int) -> int:
    """⌈targets / routers⌉."""
    return -(-num_targets // num_routers)
