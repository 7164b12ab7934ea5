"""The router deployment: one `cluster.router.Router` with its gRPC server. Imports no torch."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any

from ray import serve

from cluster import router as router_core
from cluster.requests import Strategy
from cluster.router.export import learned
from cluster.transports.grpc_drafter import DrafterDialer
from cluster.transports.router_service import RouterService
from cluster.transports.target_share import TargetShare
from deployments.data_plane import DataPlane
from deployments.discovery import listings, watch_endpoints
from deployments.scaling import ROUNDS
from deployments.settings import RouterPoolSettings
from deployments.user_config import NOT_STARTED, ConfigInUse
from dflash_core.errors import Unavailable

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

DRAIN_TIMEOUT_S = 10.0


def router_settings(
    pool: RouterPoolSettings, strategy: Strategy, tree_budget: int | None
) -> router_core.RouterSettings:
    """What the deployment's settings say to a router."""
    return router_core.RouterSettings(
        strategy=strategy,
        tree_budget=tree_budget,
        max_running=pool.max_running,
        max_waiting=pool.max_waiting,
        queue_ms_per_token=pool.queue_ms_per_token,
        prefill_chunk_tokens=pool.prefill_chunk_tokens,
        max_tree_nodes=pool.max_tree_nodes,
        min_tree_nodes=pool.min_tree_nodes,
        learns_acceptance=pool.learns_acceptance,
        learned_folder=pool.learned_folder,
        micro_batches=pool.micro_batches,
        failover_timeout_s=pool.failover_timeout_s,
        round_timeout_ms=pool.round_timeout_ms,
    )


class _Running:
    """A router, its gRPC server, and what keeps both in touch with the other pools."""

    def __init__(
        self, settings: router_core.RouterSettings, data_plane: DataPlane, drafters: DeploymentHandle | None
    ) -> None:
        self.router = router_core.Router(settings)
        self.service = RouterService(self.router)
        self._data_plane = data_plane
        self._handle = drafters
        self._share = TargetShare(self.service, data_plane.security)
        self._drafters = DrafterDialer(self.router, data_plane.security)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._server = await self._data_plane.serve(self.service.register)
        self._tasks = [asyncio.create_task(self._watch_peers())]
        if self._handle is not None:
            self._tasks.append(asyncio.create_task(watch_endpoints(self._handle, self._drafters.set_endpoints)))

    @property
    def address(self) -> str:
        return self._server.address

    async def stop(self) -> None:
        """New sequences go elsewhere, those here may finish."""
        await self.service.drain(DRAIN_TIMEOUT_S)
        for task in self._tasks:
            task.cancel()
        await self._drafters.close()
        await self.router.close()
        await self._server.stop()

    async def _watch_peers(self) -> None:
        """The other replicas of this deployment."""
        replica = serve.get_replica_context()
        pool = serve.get_deployment_handle(replica.deployment, replica.app_name)
        async for addresses in listings(pool):
            await self._share.update([address for address in addresses if address != self.address])


class Router:
    """Targets and gateways dial it; it dials the drafters. `drafters` is None where decoding is plain."""

    async def __init__(
        self,
        settings: RouterPoolSettings,
        strategy: Strategy,
        tree_budget: int | None,
        data_plane: DataPlane,
        drafters: DeploymentHandle | None,
    ) -> None:
        self._settings = settings
        self._strategy = strategy
        self._tree_budget = tree_budget
        self._data_plane = data_plane
        self._drafters = drafters
        self._running: _Running | None = None  # None before the start
        self._config = ConfigInUse()

    async def reconfigure(self, user_config: Any) -> None:
        """As `Target.reconfigure`."""
        await self._config.change(self._settings, user_config, self._start_anew)

    async def _start_anew(self, settings: RouterPoolSettings) -> None:
        if self._running is not None:
            await self._running.stop()
        of_router = router_settings(settings, self._strategy, self._tree_budget)
        self._running = _Running(of_router, self._data_plane, self._drafters)
        await self._running.start()

    async def endpoint(self) -> str:
        """Where targets and gateways dial; "" while draining."""
        return "" if self._running is None or self._running.service.is_draining else self._running.address

    async def check_health(self) -> None:
        """To answer is all: a router whose event loop is stuck does not, and only a restart cures that."""
        if self._running is None:
            raise Unavailable(NOT_STARTED)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Ray Serve asks every replica of an automatic pool; see `deployments/scaling.py`."""
        return {ROUNDS: 0.0 if self._running is None else float(self._running.service.num_rounds_in_flight)}

    async def stats(self) -> dict[str, Any]:
        """What is held here: for tests and for looking around, not for work."""
        if self._running is None:
            raise Unavailable(NOT_STARTED)
        router = self._running.router
        return {
            "pid": os.getpid(),
            "num_targets": router.num_targets,
            "num_drafters": router.num_drafters,
            "num_running": router.num_running,
            "num_waiting": router.num_waiting,
            "learned": learned(router),
            "imports_torch": "torch" in sys.modules,
        }

    async def __del__(self) -> None:
        """Serve calls this on scale-in and shutdown."""
        running = getattr(self, "_running", None)  # none where the constructor failed
        if running is not None:
            await running.stop()
