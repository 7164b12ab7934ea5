"""Every message survives the wire."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.status import error_of
from cluster.wire import drafts, generations, rounds
from dflash_core.contracts.packed import Packed
from dflash_core.errors import ErrorCode, Overloaded
from tests.cluster.wire_values import (
    context_acks,
    context_chunks,
    draft_requests,
    draft_results,
    drafter_infos,
    events,
    generation_requests,
    round_requests,
    round_results,
    target_infos,
)

MESSAGES: dict[str, tuple[st.SearchStrategy[Any], Any, Any]] = {
    "round request": (round_requests, rounds.round_request_to_pb, rounds.round_request_from_pb),
    "round result": (round_results, rounds.round_result_to_pb, rounds.round_result_from_pb),
    "target info": (target_infos, rounds.target_info_to_pb, rounds.target_info_from_pb),
    "drafter info": (drafter_infos, drafts.drafter_info_to_pb, drafts.drafter_info_from_pb),
    "draft request": (draft_requests, drafts.draft_request_to_pb, drafts.draft_request_from_pb),
    "draft result": (draft_results, drafts.draft_result_to_pb, drafts.draft_result_from_pb),
    "context chunk": (context_chunks, drafts.context_chunk_to_pb, drafts.context_chunk_from_pb),
    "context ack": (context_acks, drafts.context_ack_to_pb, drafts.context_ack_from_pb),
    "generation": (generation_requests, generations.generation_to_pb, generations.generation_from_pb),
    "events": (st.lists(events, max_size=4), generations.events_to_pb, generations.events_from_pb),
}


def same(left: Any, right: Any) -> bool:
    """Equality that looks into arrays, and minds their dtypes and shapes."""
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and bool(np.array_equal(left, right))
    if isinstance(left, tuple | list | Packed):
        return len(left) == len(right) and all(map(same, left, right))
    if hasattr(left, "__dataclass_fields__"):
        names = left.__dataclass_fields__
        return type(left) is type(right) and all(same(getattr(left, n), getattr(right, n)) for n in names)
    return bool(left == right)


@pytest.mark.parametrize("name", MESSAGES)
def test_round_trip(name: str) -> None:
    strategy, to_pb, from_pb = MESSAGES[name]

    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault of a message
    @given(strategy)
    def check(message: Any) -> None:
        pb = to_pb(message)
        assert same(from_pb(type(pb).FromString(pb.SerializeToString())), message)

    check()


@pytest.mark.parametrize("code", list(ErrorCode))
def test_errors_keep_their_code(code: ErrorCode) -> None:
    error = error_of(code.value, "why", retry_after_s=2.5)
    if code is not ErrorCode.CANCELLED and code is not ErrorCode.UNIMPLEMENTED:
        assert error.code is code
    back = generations.failure_from_pb(generations.failure_to_pb(error))
    assert (type(back), back.message) == (type(error), "why")
    if isinstance(back, Overloaded):
        assert back.retry_after_s == 2.5
