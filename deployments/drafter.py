"""The drafter deployment: one drafter model behind its gRPC server."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from cluster.transports.drafter_service import DrafterService
from cluster.transports.grpc_options import RunningServer
from deployments.data_plane import DataPlane
from deployments.replica_start import start_model
from deployments.scaling import LAG_MS, SEQUENCES
from deployments.settings import DrafterPoolSettings
from deployments.user_config import NOT_STARTED, ConfigInUse
from deployments.watchdog import check_thread
from dflash_core.errors import Unavailable
from dflash_core.runners.settings import DrafterSettings

GRACE_S = 1.0


@dataclass(frozen=True, slots=True)
class _Running:
    runner: Any
    service: DrafterService
    server: RunningServer


class Drafter:
    """Routers and targets dial it. The model is loaded and run on one thread of its own."""

    async def __init__(self, settings: DrafterPoolSettings, target_model: str, data_plane: DataPlane) -> None:
        self._settings = settings
        self._target_model = target_model
        self._data_plane = data_plane
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="drafter")
        self._running: _Running | None = None  # None while it loads and while it drains
        self._config = ConfigInUse()

    async def reconfigure(self, user_config: Any) -> None:
        """As `Target.reconfigure`."""
        await self._config.change(self._settings, user_config, self._start_anew)

    async def _start_anew(self, settings: DrafterPoolSettings) -> None:
        await self._stop()
        loop = asyncio.get_running_loop()
        runner = await loop.run_in_executor(self._executor, _load, settings, self._target_model)
        service = DrafterService(runner, executor=self._executor)
        self._running = _Running(runner, service, await self._data_plane.serve(service.register))

    async def _stop(self) -> None:
        """Its sequences go on with another drafter, or with the root alone."""
        if self._running is None:
            return
        running, self._running = self._running, None
        await running.server.stop(GRACE_S)
        await running.service.close()

    async def endpoint(self) -> str:
        """Where routers and targets dial; "" while nothing listens there."""
        return "" if self._running is None else self._running.server.address

    async def check_health(self) -> None:
        """Raises `Unavailable` when the GPU is lost or the model's thread stuck: only a restart cures that."""
        if self._running is None:
            raise Unavailable(NOT_STARTED)
        self._running.service.check_health()
        await check_thread(self._executor)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Ray Serve asks every replica of an automatic pool; see `deployments/scaling.py`."""
        if self._running is None:
            return {SEQUENCES: 0.0, LAG_MS: 0.0}
        service = self._running.service
        return {SEQUENCES: float(service.num_sequences + service.queued_sequences), LAG_MS: service.lag.take_mean_ms()}

    async def stats(self) -> dict[str, Any]:
        """What is held here: for tests and for looking around, not for work."""
        if self._running is None:
            raise Unavailable(NOT_STARTED)
        runner, service = self._running.runner, self._running.service
        return {
            "pid": os.getpid(),
            "num_sequences": runner.num_sequences,
            "free_blocks": runner.free_blocks,
            "num_drafts": service.num_drafts,
        }

    async def __del__(self) -> None:
        """Serve calls this on scale-in and shutdown."""
        if not hasattr(self, "_executor"):
            return  # the constructor failed
        await self._stop()
        self._executor.shutdown(wait=False)


def _load(settings: DrafterPoolSettings, target_model: str) -> Any:
    # Here, since these bring torch: the builder and other replicas import this module too.
    from dflash_core.runners.drafter import DrafterRunner

    fields = {name: getattr(settings, name) for name in DrafterSettings.model_fields}
    return start_model("drafter", lambda: DrafterRunner.load(settings.model, target_model, DrafterSettings(**fields)))
