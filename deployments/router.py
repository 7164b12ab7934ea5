"""The router deployment: one `cluster.router.Router` with its gRPC server. Imports no torch."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any

from ray import serve

from cluster import router as router_core
from cluster.router.export import learned
from cluster.transports.grpc_drafter import DrafterDialer
from cluster.transports.router_service import RouterService
from cluster.transports.target_share import TargetShare
from deployments.data_plane import DataPlane
from deployments.discovery import listings, watch_endpoints
from deployments.scaling import ROUNDS

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from deployments.settings import Settings

DRAIN_TIMEOUT_S = 10.0


def router_settings(settings: Settings) -> router_core.RouterSettings:
    """What the deployment's settings say to a router."""
    return router_core.RouterSettings(
        strategy=settings.strategy,
        tree_budget=settings.tree_budget,
        max_running=settings.router.max_running,
        max_waiting=settings.router.max_waiting,
        queue_ms_per_token=settings.router.queue_ms_per_token,
        prefill_chunk_tokens=settings.router.prefill_chunk_tokens,
        max_tree_nodes=settings.router.max_tree_nodes,
        min_tree_nodes=settings.router.min_tree_nodes,
        learns_acceptance=settings.router.learns_acceptance,
        learned_folder=settings.router.learned_folder,
        micro_batches=settings.router.micro_batches,
        failover_timeout_s=settings.router.failover_timeout_s,
        round_timeout_ms=settings.router.round_timeout_ms,
    )


class Router:
    """Targets and gateways dial it; it dials the drafters. `drafters` is None where decoding is plain."""

    async def __init__(
        self,
        settings: router_core.RouterSettings,
        data_plane: DataPlane,
        drafters: DeploymentHandle | None,
    ) -> None:
        self._router = router_core.Router(settings)
        self._service = RouterService(self._router)
        self._share = TargetShare(self._service, data_plane.security)
        self._drafters = DrafterDialer(self._router, data_plane.security)
        self._running = await data_plane.serve(self._service.register)
        self._tasks = [asyncio.create_task(self._watch_peers())]
        if drafters is not None:
            self._tasks.append(asyncio.create_task(watch_endpoints(drafters, self._drafters.set_endpoints)))

    async def _watch_peers(self) -> None:
        """The other replicas of this deployment."""
        replica = serve.get_replica_context()
        pool = serve.get_deployment_handle(replica.deployment, replica.app_name)
        async for addresses in listings(pool):
            await self._share.update([address for address in addresses if address != self._running.address])

    async def endpoint(self) -> str:
        """Where targets and gateways dial; "" while draining."""
        return "" if self._service.is_draining else self._running.address

    async def check_health(self) -> None:
        """To answer is all: a router whose event loop is stuck does not, and only a restart cures that."""

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Ray Serve asks every replica of an automatic pool; see `deployments/scaling.py`."""
        return {ROUNDS: float(self._service.num_rounds_in_flight)}

    async def stats(self) -> dict[str, Any]:
        """What is held here: for tests and for looking around, not for work."""
        return {
            "pid": os.getpid(),
            "num_targets": self._router.num_targets,
            "num_drafters": self._router.num_drafters,
            "num_running": self._router.num_running,
            "num_waiting": self._router.num_waiting,
            "learned": learned(self._router),
            "imports_torch": "torch" in sys.modules,
        }

    async def __del__(self) -> None:
        """Serve calls this on scale-in and shutdown: new sequences go elsewhere, those here may finish."""
        if not hasattr(self, "_running"):
            return  # the constructor failed
        await self._service.drain(DRAIN_TIMEOUT_S)
        for task in self._tasks:
            task.cancel()
        await self._drafters.close()
        await self._router.close()
        await self._running.stop()
