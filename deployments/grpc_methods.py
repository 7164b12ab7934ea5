"""The methods of the public gRPC service and of `grpc.health.v1`, as Ray Serve calls them: by name, with bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from cluster.requests import FinishReason
from cluster.status import grpc_status
from cluster.transports.authentication import AUTHORIZATION
from deployments.api_keys import KeyRing
from deployments.generation import GenerationService
from deployments.grpc_api import HEALTH_SERVICES, generation_job, health_status, parse, statistics_message, usage
from deployments.job import JobStatistics, TextDelta
from dflash_core.errors import DFlashError
from protos import inference_pb2

HEALTH_WATCH_PERIOD_S = 0.5

_Message = TypeVar("_Message", bound=Message)


class CallContext(Protocol):
    """What is used of `RayServegRPCContext`."""

    def invocation_metadata(self) -> Any: ...

    def set_code(self, code: grpc.StatusCode) -> None: ...

    def set_details(self, details: str) -> None: ...


class GrpcMethods:
    """Over the attributes below, which the gateway has. A method that raises has set the status before."""

    _service: GenerationService
    _keys: KeyRing
    _drafter_model: str | None

    # --- dflash.v1.Inference: with an API key where there are any

    async def Generate(  # noqa: N802
        self, body: bytes, grpc_context: CallContext
    ) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
        statistics = JobStatistics()
        try:
            async with aclosing(self._deltas(body, grpc_context, statistics)) as deltas:
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
        self, body: bytes, grpc_context: CallContext
    ) -> inference_pb2.CompleteResponse:
        answer = inference_pb2.CompleteResponse(model=self._service.model_name)
        texts = []
        statistics = JobStatistics()
        try:
            async with aclosing(self._deltas(body, grpc_context, statistics)) as deltas:
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
        self, body: bytes, grpc_context: CallContext
    ) -> inference_pb2.ListModelsResponse:
        try:
            self._authenticate(grpc_context)
            self._parse(inference_pb2.ListModelsRequest, body)
        except DFlashError as error:
            _set_status(grpc_context, error)
            raise
        model = inference_pb2.Model(
            id=self._service.model_name,
            max_model_len=self._service.max_model_len or 0,
            drafter=self._drafter_model or "",
        )
        return inference_pb2.ListModelsResponse(models=[model])

    async def _deltas(
        self, body: bytes, grpc_context: CallContext, statistics: JobStatistics
    ) -> AsyncGenerator[TextDelta, None]:
        self._authenticate(grpc_context)
        job = generation_job(self._parse(inference_pb2.GenerateRequest, body))
        async with aclosing(self._service.generate(job, statistics)) as deltas:
            async for delta in deltas:
                yield delta

    def _authenticate(self, grpc_context: CallContext) -> None:
        """Raises `Unauthenticated`."""
        self._keys.authenticate(dict(grpc_context.invocation_metadata() or ()).get(AUTHORIZATION))

    def _parse(self, message_type: type[_Message], body: bytes) -> _Message:
        """Raises `InvalidRequest`, of it `RequestTooLarge`."""
        self._service.limits.check_body(len(body))
        return parse(message_type, body)

    # --- grpc.health.v1.Health: open to whoever watches

    async def Check(self, body: bytes, grpc_context: CallContext) -> health_pb2.HealthCheckResponse:  # noqa: N802
        service = self._watched(body, grpc_context)
        if service not in HEALTH_SERVICES:
            grpc_context.set_code(grpc.StatusCode.NOT_FOUND)
            grpc_context.set_details(f"unknown service {service!r}; there are {', '.join(HEALTH_SERVICES[1:])}")
        return health_status(service, self._service.is_ready)

    async def Watch(  # noqa: N802
        self, body: bytes, grpc_context: CallContext
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        service = self._watched(body, grpc_context)
        last = None
        while True:
            status = health_status(service, self._service.is_ready)
            if status != last:
                yield status
                last = status
            await asyncio.sleep(HEALTH_WATCH_PERIOD_S)

    def _watched(self, body: bytes, grpc_context: CallContext) -> str:
        try:
            service: str = self._parse(health_pb2.HealthCheckRequest, body).service
        except DFlashError as error:
            _set_status(grpc_context, error)
            raise
        return service


def _reason(reason: FinishReason | None) -> str:
    return "" if reason is None else reason.value


def _set_status(context: CallContext, error: DFlashError) -> None:
    context.set_code(grpc_status(error))
    context.set_details(error.message)
