"""The target deployment: one target model that lends itself to a router."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from cluster.transports.authentication import DataPlaneSecurity
from cluster.transports.target_agent import TargetAgent
from deployments.discovery import watch_endpoints
from deployments.placement import actor_options
from deployments.replica_start import start_model
from deployments.scaling import SEQUENCES
from deployments.settings import TargetPoolSettings
from deployments.target_ranks import ActorLauncher
from deployments.watchdog import check_thread
from dflash_core.runners.settings import TargetSettings

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle


class Target:
    """Dials a router, whose stream is the lease on it. The model is loaded and run on one thread of its own."""

    async def __init__(
        self,
        settings: TargetPoolSettings,
        drafter_model: str | None,
        routers: DeploymentHandle,
        security: DataPlaneSecurity,
    ) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="target")
        loop = asyncio.get_running_loop()
        self._runner = await loop.run_in_executor(self._executor, _load, settings, drafter_model)
        self._router_addresses: list[str] = []
        self._agent = TargetAgent(
            self._runner, lambda: self._router_addresses, executor=self._executor, security=security
        )
        self._discovery = asyncio.create_task(watch_endpoints(routers, self._set_routers))
        self._agent.start()

    def _set_routers(self, addresses: list[str]) -> None:
        self._router_addresses = addresses

    async def check_health(self) -> None:
        """Raises `Unavailable` when a round is stuck, the GPU lost or a rank gone: only a restart cures that."""
        self._agent.check_health()
        # Not on the model's thread, which may wait for just that rank.
        await asyncio.get_running_loop().run_in_executor(None, self._runner.check_ranks)
        await check_thread(self._executor)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Ray Serve asks every replica of an automatic pool; see `deployments/scaling.py`."""
        return {SEQUENCES: float(self._runner.num_sequences + self._agent.queued_sequences)}

    async def stats(self) -> dict[str, Any]:
        """What is held here: for tests and for looking around, not for work."""
        return {
            "pid": os.getpid(),
            "rank_pids": self._runner.rank_pids,
            "num_sequences": self._runner.num_sequences,
            "free_blocks": self._runner.free_blocks,
            "num_blocks": self._runner.info.num_blocks,
            "num_rounds": self._agent.num_rounds,
            "epoch": self._agent.epoch,
            "router": self._agent.router_address,
        }

    async def __del__(self) -> None:
        """Serve calls this on scale-in and shutdown: the router moves the sequences to another target."""
        if not hasattr(self, "_discovery"):
            return  # the constructor failed
        self._discovery.cancel()
        await self._agent.drain()
        await asyncio.get_running_loop().run_in_executor(None, self._runner.close)
        self._executor.shutdown(wait=False)


def _load(settings: TargetPoolSettings, drafter_model: str | None) -> Any:
    # Here, since these bring torch: the builder and other replicas import this module too.
    from dflash_core.runners.target import TargetRunner

    fields = {name: getattr(settings, name) for name in TargetSettings.model_fields}
    launcher = ActorLauncher(actor_options(settings))
    return start_model(
        "target", lambda: TargetRunner.load(settings.model, drafter_model, TargetSettings(**fields), launcher)
    )
