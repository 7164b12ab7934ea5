"""The gateway: the application's ingress, OpenAI's HTTP API and the public gRPC service over one `GenerationService`.

Stateless apart from the requests it is serving. Imports neither torch nor transformers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc
from fastapi import FastAPI
from grpc_health.v1 import health_pb2
from ray import serve
from ray.serve.grpc_util import RayServegRPCContext
from tokenizers import Tokenizer

from cluster.requests import FinishReason
from cluster.status import grpc_status
from cluster.transports.router_pool import RouterPool
from deployments.discovery import watch_endpoints
from deployments.generation import GenerationService
from deployments.grpc_api import (
    HEALTH_SERVICES,
    drop_refusal_traceback,
    generation_job,
    health_status,
    parse,
    statistics_message,
    usage,
)
from deployments.http_api import build_http_app
from deployments.job import JobStatistics, TextDelta
from deployments.settings import LimitSettings
from dflash_core.errors import DFlashError
from dflash_core.models.checkpoints import resolve_checkpoint
from protos import inference_pb2

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

HEALTH_WATCH_PERIOD_S = 0.5


@serve.ingress()
class Gateway:
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
    ) -> None:
        logging.getLogger("ray.serve").addFilter(drop_refusal_traceback)
        tokenizer = Tokenizer.from_file(str(resolve_checkpoint(target_model) / "tokenizer.json"))
        self._pool = RouterPool(failover_timeout_s)
        self._targets = targets
        self._drafter_model = drafter_model
        self._service = GenerationService(self._pool, tokenizer, model_name, limits, failover_timeout_s)
        self._discovery = asyncio.create_task(watch_endpoints(routers, self._pool.set_endpoints))

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_http_app(self._service, self._drafter_model)

    async def stats(self) -> dict[str, Any]:
        """What is open here: for tests and for looking around, not for work."""
        return {
            "pid": os.getpid(),
            "open_outputs": self._service.num_open_outputs,
            "finished_outputs": self._service.num_finished_outputs,
            "is_ready": self._service.is_ready,
            "imports_torch": "torch" in sys.modules,
        }

    async def __del__(self) -> None:
        """Serve calls this when the requests it counts are done: nothing of ours is left to wait for."""
        if hasattr(self, "_discovery"):
            self._discovery.cancel()
            await self._pool.close()

    # --- dflash.v1.Inference, by the names of its methods; requests come as bytes (`grpc_api`)

    async def Generate(  # noqa: N802
        self, body: bytes, grpc_context: RayServegRPCContext
    ) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
        statistics = JobStatistics()
        try:
            async with aclosing(self._deltas(body, statistics)) as deltas:
                async for delta in deltas:
                    message = inference_pb2.GenerateResponse(text=delta.text, token_ids=delta.token_ids)
                    if delta.finish_reason is not None:
                        message.finish_reason = delta.finish_reason.value
                        message.usage.CopyFrom(usage(statistics))
                        message.statistics.CopyFrom(statistics_message(statistics))
                    yield message
        except DFlashError as error:
            _set_status(grpc_context, error)
            raise

    async def Complete(  # noqa: N802
        self, body: bytes, grpc_context: RayServegRPCContext
    ) -> inference_pb2.CompleteResponse:
        answer = inference_pb2.CompleteResponse(model=self._service.model_name)
        texts = []
        statistics = JobStatistics()
        try:
            async with aclosing(self._deltas(body, statistics)) as deltas:
                async for delta in deltas:
                    texts.append(delta.text)
                    answer.token_ids.extend(delta.token_ids)
                    answer.finish_reason = _reason(delta.finish_reason)
        except DFlashError as error:
            _set_status(grpc_context, error)
            raise
        answer.text = "".join(texts)
        answer.usage.CopyFrom(usage(statistics))
        answer.statistics.CopyFrom(statistics_message(statistics))
        return answer

    async def ListModels(  # noqa: N802
        self, body: bytes, grpc_context: RayServegRPCContext
    ) -> inference_pb2.ListModelsResponse:
        try:
            parse(inference_pb2.ListModelsRequest, body)
        except DFlashError as error:
            _set_status(grpc_context, error)
            raise
        model = inference_pb2.Model(
            id=self._service.model_name,
            max_model_len=self._service.max_model_len or 0,
            drafter=self._drafter_model or "",
        )
        return inference_pb2.ListModelsResponse(models=[model])

    async def _deltas(self, body: bytes, statistics: JobStatistics) -> AsyncGenerator[TextDelta, None]:
        job = generation_job(parse(inference_pb2.GenerateRequest, body))
        async with aclosing(self._service.generate(job, statistics)) as deltas:
            async for delta in deltas:
                yield delta

    # --- grpc.health.v1.Health

    async def Check(self, body: bytes, grpc_context: RayServegRPCContext) -> health_pb2.HealthCheckResponse:  # noqa: N802
        service = parse(health_pb2.HealthCheckRequest, body).service
        if service not in HEALTH_SERVICES:
            grpc_context.set_code(grpc.StatusCode.NOT_FOUND)
            grpc_context.set_details(f"unknown service {service!r}; there are {', '.join(HEALTH_SERVICES[1:])}")
        return health_status(service, self._service.is_ready)

    async def Watch(  # noqa: N802
        self, body: bytes, grpc_context: RayServegRPCContext
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        service = parse(health_pb2.HealthCheckRequest, body).service
        last = None
        while True:
            status = health_status(service, self._service.is_ready)
            if status != last:
                yield status
                last = status
            await asyncio.sleep(HEALTH_WATCH_PERIOD_S)


def _reason(reason: FinishReason | None) -> str:
    return "" if reason is None else reason.value


def _set_status(context: RayServegRPCContext, error: DFlashError) -> None:
    context.set_code(grpc_status(error))
    context.set_details(error.message)
