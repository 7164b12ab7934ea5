"""The drafter deployment: one drafter model behind its gRPC server."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cluster.transports.drafter_service import DrafterService
from deployments.data_plane import DataPlane
from deployments.replica_start import start_model
from deployments.scaling import LAG_MS, SEQUENCES
from deployments.settings import DrafterPoolSettings
from deployments.watchdog import check_thread
from dflash_core.runners.settings import DrafterSettings

GRACE_S = 1.0


class Drafter:
    """Routers and targets dial it. The model is loaded and run on one thread of its own."""

    async def __init__(self, settings: DrafterPoolSettings, target_model: str, data_plane: DataPlane) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="drafter")
        loop = asyncio.get_running_loop()
        self._runner = await loop.run_in_executor(self._executor, _load, settings, target_model)
        self._service = DrafterService(self._runner, executor=self._executor)
        self._is_draining = False
        self._running = await data_plane.serve(self._service.register)

    async def endpoint(self) -> str:
        """Where routers and targets dial; "" while draining."""
        return "" if self._is_draining else self._running.address

    async def check_health(self) -> None:
        """Raises `Unavailable` when the GPU is lost or the model's thread stuck: only a restart cures that."""
        self._service.check_health()
        await check_thread(self._executor)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Ray Serve asks every replica of an automatic pool; see `deployments/scaling.py`."""
        sequences = self._service.num_sequences + self._service.queued_sequences
        return {SEQUENCES: float(sequences), LAG_MS: self._service.lag.take_mean_ms()}

    async def stats(self) -> dict[str, Any]:
        """What is held here: for tests and for looking around, not for work."""
        return {
            "pid": os.getpid(),
            "num_sequences": self._runner.num_sequences,
            "free_blocks": self._runner.free_blocks,
            "num_drafts": self._service.num_drafts,
        }

    async def __del__(self) -> None:
        """Serve calls this on scale-in and shutdown. Sequences go on with another drafter, or with the root alone."""
        if not hasattr(self, "_running"):
            return  # the constructor failed
        self._is_draining = True
        await self._running.stop(GRACE_S)
        await self._service.close()
        self._executor.shutdown(wait=False)


def _load(settings: DrafterPoolSettings, target_model: str) -> Any:
    # Here, since these bring torch: the builder and other replicas import this module too.
    from dflash_core.runners.drafter import DrafterRunner

    fields = {name: getattr(settings, name) for name in DrafterSettings.model_fields}
    return start_model("drafter", lambda: DrafterRunner.load(settings.model, target_model, DrafterSettings(**fields)))
