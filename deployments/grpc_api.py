"""The public gRPC service behind Serve's gRPC proxy: registration, and messages to and from `generation`'s types.

Requests reach the gateway as bytes and are parsed there: a message that is no protobuf then gets INVALID_ARGUMENT,
where Serve's proxy would answer UNKNOWN before our code runs.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2
from ray.serve.exceptions import gRPCStatusError

from cluster.requests import LatencyClass
from deployments.job import DEFAULT_MAX_TOKENS, GenerationJob, JobStatistics
from dflash_core.contracts import SamplingParams
from dflash_core.errors import DFlashError, InvalidRequest
from protos import inference_pb2

INFERENCE_SERVICE = "dflash.v1.Inference"
HEALTH_SERVICE = "grpc.health.v1.Health"

HEALTH_SERVICES = ("", INFERENCE_SERVICE)  # "" is the server as a whole

# For `grpc_options.grpc_servicer_functions` of Ray Serve.
SERVICER_FUNCTIONS = ("deployments.grpc_api.add_public_services",)

LATENCY_CLASSES = {
    inference_pb2.LATENCY_CLASS_UNSPECIFIED: LatencyClass.STANDARD,
    inference_pb2.LATENCY_CLASS_INTERACTIVE: LatencyClass.INTERACTIVE,
    inference_pb2.LATENCY_CLASS_STANDARD: LatencyClass.STANDARD,
    inference_pb2.LATENCY_CLASS_BATCH: LatencyClass.BATCH,
}

AnyMessage = TypeVar("AnyMessage", bound=Message)


def add_public_services(servicer: Any, server: grpc.Server) -> None:
    """Registers inference and health; Serve routes each call to the gateway's method of the same name."""
    unary: Callable[..., Any] = grpc.unary_unary_rpc_method_handler
    stream: Callable[..., Any] = grpc.unary_stream_rpc_method_handler
    services = {
        INFERENCE_SERVICE: {"Generate": stream, "Complete": unary, "ListModels": unary},
        HEALTH_SERVICE: {"Check": unary, "Watch": stream},
    }
    for service, methods in services.items():
        # No request_deserializer: the handler gets the bytes.
        handlers = {name: handler(getattr(servicer, name)) for name, handler in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


def parse(message_type: type[AnyMessage], body: bytes) -> AnyMessage:
    """Raises `InvalidRequest` where the bytes are not such a message."""
    message = message_type()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        name = message_type.DESCRIPTOR.full_name
        raise InvalidRequest(f"the request is not a valid {name}: {error}") from None
    return message


def generation_job(request: inference_pb2.GenerateRequest) -> GenerationJob:
    """Fills in the defaults. Raises `InvalidRequest` for values out of range."""
    kind = request.WhichOneof("prompt")
    if kind is None:
        raise InvalidRequest("prompt is required: set text or token_ids", param="prompt")
    prompt: str | list[int] = request.text if kind == "text" else list(request.token_ids.ids)
    if request.HasField("timeout_ms") and request.timeout_ms < 1:
        raise InvalidRequest("timeout_ms must be at least 1, got 0", param="timeout_ms")
    if request.latency_class not in LATENCY_CLASSES:
        raise InvalidRequest(
            f"latency_class must be one of 0 to {max(LATENCY_CLASSES)}, got {request.latency_class}",
            param="latency_class",
        )
    return GenerationJob(
        model=request.model or None,
        prompts=(prompt,),
        max_tokens=request.max_tokens if request.HasField("max_tokens") else DEFAULT_MAX_TOKENS,
        sampling=SamplingParams(
            temperature=request.temperature if request.HasField("temperature") else 1.0,
            top_k=request.top_k,
            top_p=request.top_p if request.HasField("top_p") else 1.0,
            min_p=request.min_p,
            seed=request.seed if request.HasField("seed") else secrets.randbits(64),
        ),
        stop=tuple(request.stop),
        tree_budget=request.tree_budget if request.HasField("tree_budget") else None,
        timeout_ms=request.timeout_ms,
        latency_class=LATENCY_CLASSES[request.latency_class],
        priority=request.priority,
    )


def usage(statistics: JobStatistics) -> inference_pb2.Usage:
    return inference_pb2.Usage(
        prompt_tokens=statistics.prompt_tokens,
        completion_tokens=statistics.output_tokens,
        total_tokens=statistics.prompt_tokens + statistics.output_tokens,
        cached_tokens=statistics.cached_tokens,
    )


def statistics_message(statistics: JobStatistics) -> inference_pb2.Statistics:
    return inference_pb2.Statistics(
        rounds=statistics.rounds,
        mean_acceptance_length=statistics.mean_acceptance_length,
        tree_nodes_verified=statistics.tree_nodes,
        time_to_first_token_ms=statistics.time_to_first_token_ms,
        time_per_output_token_ms=statistics.time_per_output_token_ms,
    )


def drop_refusal_traceback(record: logging.LogRecord) -> bool:
    """A filter for Serve's logger: what a client is told with a status of its own needs no traceback in our log."""
    error = record.exc_info[1] if record.exc_info else None
    cause = error.original_exception if isinstance(error, gRPCStatusError) else error
    if isinstance(cause, DFlashError):
        record.exc_info = None
        record.msg = f"{record.getMessage()} {cause.message}"
        record.args = ()
    return True


def health_status(service: str, is_ready: bool) -> health_pb2.HealthCheckResponse:
    """Readiness of one service, or of the server as a whole ("")."""
    if service not in HEALTH_SERVICES:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    return health_pb2.HealthCheckResponse(status=serving if is_ready else not_serving)
