"""Every message survives the wire, and damaged ones are refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from cluster.requests import FinishReason, GenerationRequest, GenerationStatistics, TokenEvent
from cluster.status import error_of
from cluster.wire import drafts, generations, pieces, rounds
from dflash_core.contracts import (
    ContextAck,
    ContextChunk,
    ContextStatus,
    Draft,
    DraftBlock,
    DrafterInfo,
    DraftRequest,
    DraftResult,
    DraftTree,
    Outcome,
    OutcomeStatus,
    Prefill,
    RawTensor,
    Refill,
    RoundRequest,
    RoundResult,
    SamplingParams,
    SequenceKey,
    TargetInfo,
    TreeRows,
)
from dflash_core.errors import ErrorCode, Overloaded, ProtocolError
from protos import common_pb2, drafter_pb2, router_pb2

uint32 = st.integers(0, 2**32 - 1)
uint64 = st.integers(0, 2**64 - 1)
count = st.integers(1, 2**31 - 1)
text = st.text(st.characters(codec="utf-8"), max_size=20)
keys = st.builds(SequenceKey, st.text(st.characters(codec="utf-8"), min_size=1, max_size=40), uint32)
samplings = st.builds(
    SamplingParams,
    temperature=st.floats(0, 100, width=32),
    top_k=st.integers(0, 2**31 - 1),
    top_p=st.floats(0, 1, width=32, exclude_min=True),
    min_p=st.floats(0, 1, width=32),
    seed=uint64,
)
stages = st.dictionaries(text, uint32, max_size=3)


def int32s(min_size: int = 0, max_size: int = 20) -> st.SearchStrategy[Any]:
    return npst.arrays(np.int32, st.integers(min_size, max_size), elements=st.integers(-(2**31), 2**31 - 1))


@st.composite
def trees(draw: st.DrawFn) -> DraftTree:
    token_ids = draw(int32s(1))
    return DraftTree(token_ids, draw(npst.arrays(np.int32, len(token_ids), elements=st.integers(0, 30))))


@st.composite
def tensors(draw: st.DrawFn, dims: int = 2) -> RawTensor:
    dtype, item_bytes = draw(st.sampled_from([("float32", 4), ("bfloat16", 2), ("float16", 2)]))
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=dims, max_size=dims)))
    num_bytes = item_bytes * int(np.prod(shape))
    return RawTensor(dtype, shape, draw(st.binary(min_size=num_bytes, max_size=num_bytes)))


@st.composite
def drafted(draw: st.DrawFn) -> Draft:
    depth, width = draw(st.integers(0, 4)), draw(st.integers(1, 4))
    shape = (depth, width if depth else 0)
    return Draft(
        draw(keys),
        draw(uint32),
        draw(npst.arrays(np.int32, shape, elements=st.integers(0, 2**31 - 1))),
        draw(npst.arrays(np.float32, shape, elements=st.floats(-100, 0, width=32))),
        draw(st.none() | uint32),
        draw(st.none() | text.filter(bool)),
    )


chunks = st.builds(
    Prefill,
    key=keys,
    token_ids=int32s(1),
    start=uint32,
    is_last=st.booleans(),
    num_prompt_tokens=uint32,
    sampling=samplings,
    drafter_address=text,
    features_from=uint32,
)
first_chunks = st.builds(replace, chunks, start=st.just(0), is_last=st.just(False), following=int32s(1))
prefills = chunks | first_chunks
round_requests = st.builds(
    RoundRequest,
    round_id=uint64,
    prefills=st.lists(prefills, max_size=3).map(tuple),
    trees=st.lists(st.builds(TreeRows, keys, uint32, trees()), max_size=3).map(tuple),
    releases=st.lists(keys, max_size=3).map(tuple),
    refills=st.lists(st.builds(Refill, keys, uint32, text), max_size=3).map(tuple),
    timeout_ms=count,
    queued_sequences=uint32,
)
outcomes = st.builds(
    Outcome, keys, st.sampled_from(OutcomeStatus), int32s(), st.integers(-1, 2**31 - 1), uint32, text, uint32
)
some_keys = st.lists(keys, max_size=3).map(tuple)
round_results = st.builds(
    RoundResult, uint64, st.lists(outcomes, max_size=3).map(tuple), uint32, uint32, stages, some_keys
)
target_infos = st.builds(
    TargetInfo,
    model=text,
    vocab_size=count,
    hidden_size=count,
    num_layers=count,
    max_model_len=count,
    eos_token_ids=st.lists(st.integers(0, 2**31 - 1), max_size=3).map(tuple),
    kv_block_size=count,
    num_blocks=count,
    max_rows=count,
    max_tree_rows=count,
    fingerprint=text,
    epoch=uint32,
)
drafter_infos = st.builds(DrafterInfo, text, uint32, uint32, uint32, uint32, uint32, text, text)
draft_requests = st.builds(
    DraftRequest,
    batch_id=uint64,
    opens=st.lists(st.tuples(keys, uint32), max_size=3).map(tuple),
    releases=st.lists(keys, max_size=3).map(tuple),
    blocks=st.lists(
        st.builds(DraftBlock, keys, st.integers(-1, 2**31 - 1), uint32, samplings),
        max_size=3,
        unique_by=lambda block: block.key.sequence_id,
    ).map(tuple),
    wait_ms=uint32,
    queued_sequences=uint32,
)
draft_results = st.builds(DraftResult, uint64, st.lists(drafted(), max_size=3).map(tuple), stages)
context_chunks = st.builds(ContextChunk, keys, uint32, tensors())
context_acks = st.builds(ContextAck, keys, st.sampled_from(ContextStatus), uint32)
generation_requests = st.builds(
    GenerationRequest,
    sequence_id=text,
    token_ids=int32s(),
    num_prompt_tokens=uint32,
    max_tokens=uint32,
    sampling=samplings,
    stop_token_ids=st.lists(st.integers(0, 2**31 - 1), max_size=3).map(tuple),
    tree_budget=st.none() | uint32,
    timeout_ms=uint32,
)
milliseconds = st.floats(0, 1e9)
statistics = st.builds(
    GenerationStatistics, uint32, uint32, uint32, uint32, milliseconds, milliseconds, milliseconds, uint32
)
events = st.builds(
    TokenEvent,
    sequence_id=text,
    token_ids=int32s(),
    finish_reason=st.none() | st.sampled_from(FinishReason),
    statistics=st.none() | statistics,
    num_tree_nodes=uint32,
    cached_tokens=uint32,
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
    "event": (events, generations.event_to_pb, generations.event_from_pb),
}


def same(left: Any, right: Any) -> bool:
    """Equality that looks into arrays, and minds their dtypes and shapes."""
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and bool(np.array_equal(left, right))
    if isinstance(left, tuple | list):
        return len(left) == len(right) and all(map(same, left, right))
    if hasattr(left, "__dataclass_fields__"):
        names = left.__dataclass_fields__
        return type(left) is type(right) and all(same(getattr(left, n), getattr(right, n)) for n in names)
    return bool(left == right)


@pytest.mark.parametrize("name", MESSAGES)
def test_round_trip(name: str) -> None:
    strategy, to_pb, from_pb = MESSAGES[name]

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


def test_damaged_messages_are_refused_with_both_values() -> None:
    key = common_pb2.SequenceKey(sequence_id="a", attempt=1)
    odd = common_pb2.Int32Array(data=b"123")
    two = common_pb2.Int32Array(data=bytes(8))
    for call, match in (
        (lambda: pieces.int32_from_pb(odd), "got 3"),
        (lambda: pieces.key_from_pb(common_pb2.SequenceKey()), "got 0"),
        (lambda: pieces.key_from_pb(common_pb2.SequenceKey(sequence_id="a" * 321)), "got 321"),
        (lambda: pieces.tensor_from_pb(common_pb2.Tensor(dtype="int64")), "'int64'"),
        (lambda: pieces.tensor_from_pb(common_pb2.Tensor(dtype="float32", shape=[2, 3], data=b"1")), "24 bytes, got 1"),
        (lambda: rounds.round_request_from_pb(router_pb2.RoundRequest()), "at least 1, got 0"),
        (
            lambda: rounds.round_request_from_pb(
                router_pb2.RoundRequest(timeout_ms=1, trees=[router_pb2.TreeRows(key=key, token_ids=two)])
            ),
            "got 0 and 2",
        ),
        (
            lambda: rounds.round_request_from_pb(
                router_pb2.RoundRequest(timeout_ms=1, prefills=[router_pb2.Prefill(key=key)])
            ),
            "'a' has none",
        ),
        (
            lambda: rounds.round_request_from_pb(
                router_pb2.RoundRequest(
                    timeout_ms=1, prefills=[router_pb2.Prefill(key=key, token_ids=two, start=4, following=two)]
                )
            ),
            r"'a' at 4 \(last: False\) has 2 tokens",
        ),
        (
            lambda: rounds.round_request_from_pb(
                router_pb2.RoundRequest(
                    timeout_ms=1, prefills=[router_pb2.Prefill(key=key, token_ids=two, is_last=True, following=two)]
                )
            ),
            r"'a' at 0 \(last: True\) has 2 tokens",
        ),
        (
            lambda: rounds.round_result_from_pb(
                router_pb2.RoundResult(outcomes=[router_pb2.Outcome(key=key, status="fine")])
            ),
            "'fine'",
        ),
        (lambda: rounds.target_info_from_pb(router_pb2.TargetInfo(vocab_size=5)), "max_model_len must be .* got 0"),
        (
            lambda: drafts.draft_result_from_pb(
                drafter_pb2.DraftResult(drafts=[drafter_pb2.Draft(key=key, depth=3, token_ids=two, scores=bytes(8))])
            ),
            "depth 3 came with 2 candidates",
        ),
        (lambda: drafts.context_ack_from_pb(drafter_pb2.ContextAck(key=key, status="lost")), "'lost'"),
        (lambda: generations.event_from_pb(router_pb2.SequenceTokens(finish_reason="bored")), "'bored'"),
        (lambda: error_of("tired", "why"), "'tired'"),
    ):
        with pytest.raises(ProtocolError, match=match):
            call()
