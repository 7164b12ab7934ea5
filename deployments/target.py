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
from deployments.user_config import NOT_STARTED, ConfigInUse
from deployments.watchdog import check_thread
from dflash_core.errors import Unavailable
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
        self._settings = settings
        self._drafter_model = drafter_model
        self._security = security
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="target")
        self._running: tuple[Any, TargetAgent] | None = None  # the runner, and who runs it; None while it loads
        self._config = ConfigInUse()
        self._router_addresses: list[str] = []
        self._discovery = asyncio.create_task(watch_endpoints(routers, self._set_routers))

    async def reconfigure(self, user_config: Any) -> None:
        """Ray Serve calls this at the start and when `user_config` or its rank has changed; see `ConfigInUse`."""
        await self._config.change(self._settings, user_config, self._start_anew)

    async def _start_anew(self, settings: TargetPoolSettings) -> None:
        await self._stop()
        loop = asyncio.get_running_loop()
        runner = await loop.run_in_executor(self._executor, _load, settings, self._drafter_model)
        agent = TargetAgent(runner, lambda: self._router_addresses, executor=self._executor, security=self._security)
        self._running = runner, agent
        agent.start()

    async def _stop(self) -> None:
        """Drains: the router moves the sequences to another target."""
        if self._running is None:
            return
        (runner, agent), self._running = self._running, None
        await agent.drain()
        await asyncio.get_running_loop().run_in_executor(None, runner.close)

    def _set_routers(self, addresses: list[str]) -> None:
        self._router_addresses = addresses

    async def check_health(self) -> None:
        """Raises `Unavailable` when a round is stuck, the GPU lost or a rank gone: only a restart cures that."""
        if self._running is None:
            raise Unavailable(NOT_STARTED)
        runner, agent = self._running
        agent.check_health()
        # Not on the model's thread, which may wait for just that rank.
        await asyncio.get_running_loop().run_in_executor(None, runner.check_ranks)
        await check_thread(self._executor)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Ray Serve asks every replica of an automatic pool; see `deployments/scaling.py`."""
        if self._running is None:
            return {SEQUENCES: 0.0}
        runner, agent = self._running
        return {SEQUENCES: float(runner.num_sequences + agent.queued_sequences)}

    async def stats(self) -> dict[str, Any]:
        """What is held here: for tests and for looking around, not for work."""
        if self._running is None:
            raise Unavailable(NOT_STARTED)
        runner, agent = self._running
        return {
            "pid": os.getpid(),
            "rank_pids": runner.rank_pids,
            "num_sequences": runner.num_sequences,
            "free_blocks": runner.free_blocks,
            "num_blocks": runner.info.num_blocks,
            "num_rounds": agent.num_rounds,
            "epoch": agent.epoch,
            "router": agent.router_address,
        }

    async def __del__(self) -> None:
        """Serve calls this on scale-in and shutdown."""
        if not hasattr(self, "_discovery"):
            return  # the constructor failed
        self._discovery.cancel()
        await self._stop()
        self._executor.shutdown(wait=False)


def _load(settings: TargetPoolSettings, drafter_model: str | None) -> Any:
    # Here, since these bring torch: the builder and other replicas import this module too.
    from dflash_core.runners.target import TargetRunner

    fields = {name: getattr(settings, name) for name in TargetSettings.model_fields}
    launcher = ActorLauncher(actor_options(settings))
    return start_model(
        "target", lambda: TargetRunner.load(settings.model, drafter_model, TargetSettings(**fields), launcher)
    )
