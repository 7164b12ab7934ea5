"""What gateways and routers say to each other, as protobuf and back, checked on the way in."""

from __future__ import annotations

from cluster.requests import FinishReason, GenerationRequest, GenerationStatistics, LatencyClass, TokenEvent
from cluster.status import error_of
from cluster.wire.pieces import int32_from_pb, int32_to_pb, sampling_from_pb, sampling_to_pb
from dflash_core.errors import DFlashError, ErrorCode, Overloaded, ProtocolError
from protos import router_pb2


def generation_to_pb(request: GenerationRequest) -> router_pb2.Generation:
    return router_pb2.Generation(
        sequence_id=request.sequence_id,
        token_ids=int32_to_pb(request.token_ids),
        num_prompt_tokens=request.num_prompt_tokens,
        max_tokens=request.max_tokens,
        sampling=sampling_to_pb(request.sampling),
        stop_token_ids=request.stop_token_ids,
        tree_budget=request.tree_budget,
        timeout_ms=request.timeout_ms,
        latency_class=request.latency_class.value,
        priority=request.priority,
    )


def generation_from_pb(pb: router_pb2.Generation) -> GenerationRequest:
    """Raises `ProtocolError`, or `InvalidRequest` for sampling parameters outside their range."""
    return GenerationRequest(
        sequence_id=pb.sequence_id,
        token_ids=int32_from_pb(pb.token_ids),
        num_prompt_tokens=pb.num_prompt_tokens,
        max_tokens=pb.max_tokens,
        sampling=sampling_from_pb(pb.sampling),
        stop_token_ids=tuple(pb.stop_token_ids),
        tree_budget=pb.tree_budget if pb.HasField("tree_budget") else None,
        timeout_ms=pb.timeout_ms,
        latency_class=_latency_class_from_pb(pb.latency_class),
        priority=pb.priority,
    )


def _latency_class_from_pb(name: str) -> LatencyClass:
    try:
        return LatencyClass(name) if name else LatencyClass.STANDARD
    except ValueError:
        raise ProtocolError(f"unknown latency class {name!r}") from None


def event_to_pb(event: TokenEvent) -> router_pb2.SequenceTokens:
    pb = router_pb2.SequenceTokens(
        sequence_id=event.sequence_id,
        token_ids=int32_to_pb(event.token_ids),
        finish_reason="" if event.finish_reason is None else event.finish_reason.value,
        num_tree_nodes=event.num_tree_nodes,
        cached_tokens=event.cached_tokens,
    )
    if event.statistics is not None:
        pb.statistics.CopyFrom(_statistics_to_pb(event.statistics))
    if event.error is not None:
        pb.failure.CopyFrom(failure_to_pb(event.error))
    return pb


def event_from_pb(pb: router_pb2.SequenceTokens) -> TokenEvent:
    try:
        finish_reason = FinishReason(pb.finish_reason) if pb.finish_reason else None
    except ValueError:
        raise ProtocolError(f"unknown finish reason {pb.finish_reason!r}") from None
    return TokenEvent(
        sequence_id=pb.sequence_id,
        token_ids=int32_from_pb(pb.token_ids),
        finish_reason=finish_reason,
        statistics=_statistics_from_pb(pb.statistics) if pb.HasField("statistics") else None,
        error=failure_from_pb(pb.failure) if pb.HasField("failure") else None,
        num_tree_nodes=pb.num_tree_nodes,
        cached_tokens=pb.cached_tokens,
    )


def failure_to_pb(error: BaseException) -> router_pb2.Failure:
    """INTERNAL for whatever is not a `DFlashError`."""
    if not isinstance(error, DFlashError):
        return router_pb2.Failure(code=ErrorCode.INTERNAL.value, message=repr(error))
    return router_pb2.Failure(
        code=error.code.value,
        message=error.message,
        param=error.param or "",
        retry_after_s=error.retry_after_s if isinstance(error, Overloaded) else 0.0,
    )


def failure_from_pb(pb: router_pb2.Failure) -> DFlashError:
    return error_of(pb.code, pb.message, param=pb.param or None, retry_after_s=pb.retry_after_s)


def _statistics_to_pb(statistics: GenerationStatistics) -> router_pb2.Statistics:
    return router_pb2.Statistics(
        rounds=statistics.rounds,
        tree_nodes=statistics.tree_nodes,
        accepted_tokens=statistics.accepted_tokens,
        output_tokens=statistics.output_tokens,
        queue_ms=statistics.queue_ms,
        time_to_first_token_ms=statistics.time_to_first_token_ms,
        decode_ms=statistics.decode_ms,
        cached_tokens=statistics.cached_tokens,
    )


def _statistics_from_pb(pb: router_pb2.Statistics) -> GenerationStatistics:
    return GenerationStatistics(
        rounds=pb.rounds,
        tree_nodes=pb.tree_nodes,
        accepted_tokens=pb.accepted_tokens,
        output_tokens=pb.output_tokens,
        queue_ms=pb.queue_ms,
        time_to_first_token_ms=pb.time_to_first_token_ms,
        decode_ms=pb.decode_ms,
        cached_tokens=pb.cached_tokens,
    )
