"""The gateway: the application's ingress, OpenAI's HTTP API and the public gRPC service over one `GenerationService`.

Stateless apart from the requests it is serving. Imports neither torch nor transformers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from ray import serve
from tokenizers import Tokenizer

from cluster.transports.authentication import DataPlaneSecurity
from cluster.transports.router_pool import RouterPool
from deployments.api_keys import ApiKeySource, KeyRing
from deployments.border_settings import LimitSettings
from deployments.discovery import watch_endpoints
from deployments.generation import GenerationService
from deployments.grpc_api import drop_refusal_traceback
from deployments.grpc_methods import GrpcMethods
from deployments.http_api import build_http_app
from dflash_core.models.checkpoints import resolve_checkpoint

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle


@serve.ingress()
class Gateway(GrpcMethods):
    """One ingress replica. `targets` is only held: it makes the target pool a part of the application."""

    async def __init__(
        self,
        target_model: str,
        model_name: str,
        drafter_model: str | None,
        limits: LimitSettings,
        failover_timeout_s: float,
        routers: DeploymentHandle,
        targets: DeploymentHandle,
        security: DataPlaneSecurity,
        api_keys: ApiKeySource,
    ) -> None:
        logging.getLogger("ray.serve").addFilter(drop_refusal_traceback)
        self._keys = KeyRing(api_keys)
        tokenizer = Tokenizer.from_file(str(resolve_checkpoint(target_model) / "tokenizer.json"))
        self._pool = RouterPool(failover_timeout_s, security)
        self._targets = targets
        self._drafter_model = drafter_model
        self._service = GenerationService(self._pool, tokenizer, model_name, limits, failover_timeout_s)
        self._discovery = asyncio.create_task(watch_endpoints(routers, self._pool.set_endpoints))

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_http_app(self._service, self._drafter_model, self._keys)

    async def check_health(self) -> None:
        """To answer is all: a gateway whose event loop is stuck does not. Without targets it is well, and not ready."""

    async def stats(self) -> dict[str, Any]:
        """What is open here: for tests and for looking around, not for work."""
        return {
            "pid": os.getpid(),
            "open_outputs": self._service.num_open_outputs,
            "finished_outputs": self._service.num_finished_outputs,
            "is_ready": self._service.is_ready,
            "requests_by_key": dict(self._keys.num_requests),
            "requests_refused": self._keys.num_refused,
            "imports_torch": "torch" in sys.modules,
        }

    async def __del__(self) -> None:
        """Serve calls this when the requests it counts are done: nothing of ours is left to wait for."""
        if hasattr(self, "_discovery"):
            self._discovery.cancel()
            await self._pool.close()
