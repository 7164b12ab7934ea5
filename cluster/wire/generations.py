"""What gateways and routers say to each other, as protobuf and back, checked on the way in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cluster.requests import FinishReason, GenerationRequest, GenerationStatistics, LatencyClass, TokenEvent
from cluster.status import error_of
from cluster.wire.columns import check_columns, check_places, joined_int32, split_int32
from cluster.wire.limits import MAX_STOP_TOKENS, check_at_most, check_text
from cluster.wire.pieces import int32_to_pb, sampling_from_pb, sampling_to_pb, token_ids_from_pb
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
    check_at_most("stop tokens", len(pb.stop_token_ids), MAX_STOP_TOKENS)
    return GenerationRequest(
        sequence_id=pb.sequence_id,
        token_ids=token_ids_from_pb(pb.token_ids),
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


def events_to_pb(events: Sequence[TokenEvent]) -> router_pb2.TokenBatch:
    return router_pb2.TokenBatch(
        sequence_ids=[event.sequence_id for event in events],
        num_tokens=[len(event.token_ids) for event in events],
        token_ids=joined_int32([event.token_ids for event in events]),
        num_tree_nodes=[event.num_tree_nodes for event in events],
        cached_tokens=[event.cached_tokens for event in events],
        ends={place: _end_to_pb(event) for place, event in enumerate(events) if event.is_last},
    )


def events_from_pb(pb: router_pb2.TokenBatch) -> list[TokenEvent]:
    sequence_ids, num_tokens = list(pb.sequence_ids), list(pb.num_tokens)
    check_columns(sequence_ids, num_tokens=num_tokens, num_tree_nodes=pb.num_tree_nodes, cached_tokens=pb.cached_tokens)
    check_places("an end", pb.ends, len(sequence_ids))
    token_ids = split_int32(pb.token_ids, num_tokens, "token_ids")
    ends: list[_End] = [_NO_END] * len(sequence_ids)
    for place, end in pb.ends.items():
        ends[place] = _end_from_pb(end)
    return [
        TokenEvent(sequence_id, tokens, end.finish_reason, end.statistics, end.error, num_nodes, num_cached)
        for sequence_id, tokens, end, num_nodes, num_cached in zip(
            sequence_ids, token_ids, ends, pb.num_tree_nodes, pb.cached_tokens, strict=True
        )
    ]


class _End(NamedTuple):
    finish_reason: FinishReason | None
    statistics: GenerationStatistics | None
    error: DFlashError | None


_NO_END = _End(None, None, None)


def _end_to_pb(event: TokenEvent) -> router_pb2.SequenceEnd:
    return router_pb2.SequenceEnd(
        finish_reason="" if event.finish_reason is None else event.finish_reason.value,
        statistics=None if event.statistics is None else _statistics_to_pb(event.statistics),
        failure=None if event.error is None else failure_to_pb(event.error),
    )


def _end_from_pb(pb: router_pb2.SequenceEnd) -> _End:
    try:
        finish_reason = FinishReason(pb.finish_reason) if pb.finish_reason else None
    except ValueError:
        raise ProtocolError(f"unknown finish reason {pb.finish_reason!r}") from None
    return _End(
        finish_reason,
        _statistics_from_pb(pb.statistics) if pb.HasField("statistics") else None,
        failure_from_pb(pb.failure) if pb.HasField("failure") else None,
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
    return error_of(
        pb.code, check_text("a failure", pb.message), param=pb.param or None, retry_after_s=pb.retry_after_s
    )


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
