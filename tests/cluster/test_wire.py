"""Every message survives the wire, and damaged ones are refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from cluster.requests import FinishReason, GenerationRequest, GenerationStatistics, TokenEvent
from cluster.status import error_of
from cluster.wire import columns as columns_module
from cluster.wire import drafts, generations, pieces, rounds
from dflash_core.contracts import (
    ContextAck,
    ContextChunk,
    ContextStatus,
    Draft,
    DraftBlock,
    DrafterInfo,
    DraftRanking,
    DraftRequest,
    DraftResult,
    DraftTree,
    Outcome,
    OutcomeStatus,
    PackedDraftBlocks,
    PackedDrafts,
    PackedOutcomes,
    PackedTreeRows,
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
from dflash_core.contracts.packed import Packed
from dflash_core.errors import ErrorCode, Overloaded, ProtocolError
from protos import common_pb2, drafter_pb2, router_pb2

uint32 = st.integers(0, 2**32 - 1)
uint64 = st.integers(0, 2**64 - 1)
count = st.integers(1, 2**31 - 1)
text = st.text(st.characters(codec="utf-8"), max_size=20)
addresses = st.sampled_from(["", "10.0.0.7:20001", "localhost:1", "drafter.pool:65535", "[fd00::1]:443", "fd00::1:443"])
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
    drafter_address=addresses,
    features_from=uint32,
)


def in_columns(lists: st.SearchStrategy[list[Any]], packed: Any) -> st.SearchStrategy[Any]:
    """As they are, and in columns."""
    return lists.map(tuple) | lists.map(packed.of)


first_chunks = st.builds(replace, chunks, start=st.just(0), is_last=st.just(False), following=int32s(1))
prefills = chunks | first_chunks
round_requests = st.builds(
    RoundRequest,
    round_id=uint64,
    prefills=st.lists(prefills, max_size=3).map(tuple),
    trees=in_columns(st.lists(st.builds(TreeRows, keys, uint32, trees()), max_size=3), PackedTreeRows),
    releases=st.lists(keys, max_size=3).map(tuple),
    refills=st.lists(st.builds(Refill, keys, uint32, addresses), max_size=3).map(tuple),
    timeout_ms=count,
    queued_sequences=uint32,
)
outcomes = st.builds(
    Outcome, keys, st.sampled_from(OutcomeStatus), int32s(), st.integers(-1, 2**31 - 1), uint32, text, uint32
)
some_keys = st.lists(keys, max_size=3).map(tuple)
round_results = st.builds(
    RoundResult,
    uint64,
    in_columns(st.lists(outcomes, max_size=3), PackedOutcomes),
    uint32,
    uint32,
    stages,
    some_keys,
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
sizes = st.integers(2, 2**31 - 1)
drafter_infos = st.builds(DrafterInfo, text, sizes, sizes, sizes, sizes, sizes, text, text)
rankings = st.builds(DraftRanking, st.booleans(), st.floats(0, 1000, width=32))
draft_requests = st.builds(
    DraftRequest,
    batch_id=uint64,
    opens=st.lists(st.tuples(keys, uint32), max_size=3).map(tuple),
    releases=st.lists(keys, max_size=3).map(tuple),
    blocks=in_columns(
        st.lists(
            st.builds(DraftBlock, keys, st.integers(-1, 2**31 - 1), uint32, samplings, rankings),
            max_size=3,
            unique_by=lambda block: block.key.sequence_id,
        ),
        PackedDraftBlocks,
    ),
    wait_ms=uint32,
    queued_sequences=uint32,
    num_candidates=uint32,
)
draft_results = st.builds(DraftResult, uint64, in_columns(st.lists(drafted(), max_size=3), PackedDrafts), stages)
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
ends = st.just((None, None)) | st.tuples(st.sampled_from(FinishReason), st.none() | statistics)
events = st.builds(
    lambda sequence_id, token_ids, end, num_nodes, cached: TokenEvent(
        sequence_id, token_ids, *end, None, num_nodes, cached
    ),
    text,
    int32s(),
    ends,
    uint32,
    uint32,
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


def _refused(call: Any, match: str) -> None:
    with pytest.raises(ProtocolError, match=match):
        call()


KEY = common_pb2.SequenceKey(sequence_id="a", attempt=1)
KEYS = common_pb2.SequenceKeys(sequence_ids=["a", "b"], attempts=[1, 2])
TWO = common_pb2.Int32Array(data=bytes(8))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: pieces.token_ids_from_pb(common_pb2.Int32Array(data=b"123")), "got 3"),
        (lambda: pieces.key_from_pb(common_pb2.SequenceKey()), "got 0"),
        (lambda: pieces.key_from_pb(common_pb2.SequenceKey(sequence_id="a" * 321)), "got 321"),
        (lambda: pieces.tensor_from_pb(common_pb2.Tensor(dtype="int64")), "'int64'"),
        (lambda: pieces.tensor_from_pb(common_pb2.Tensor(dtype="float32", shape=[2, 3], data=b"1")), "24 bytes, got 1"),
        (lambda: drafts.context_ack_from_pb(drafter_pb2.ContextAck(key=KEY, status="lost")), "'lost'"),
        (lambda: rounds.target_info_from_pb(router_pb2.TargetInfo(vocab_size=5)), "max_model_len must lie in .* got 0"),
        (lambda: rounds.round_request_from_pb(router_pb2.RoundRequest()), "at least 1, got 0"),
        (lambda: error_of("tired", "why"), "'tired'"),
    ],
)
def test_damaged_messages_are_refused_with_both_values(call: Any, match: str) -> None:
    _refused(call, match)


@pytest.mark.parametrize(
    ("prefill", "match"),
    [
        (router_pb2.Prefill(key=KEY), "'a' has none"),
        (
            router_pb2.Prefill(key=KEY, token_ids=TWO, start=4, following=TWO),
            r"'a' at 4 \(last: False\) has 2 tokens",
        ),
        (
            router_pb2.Prefill(key=KEY, token_ids=TWO, is_last=True, following=TWO),
            r"'a' at 0 \(last: True\) has 2 tokens",
        ),
    ],
)
def test_damaged_prefills_are_refused(prefill: router_pb2.Prefill, match: str) -> None:
    _refused(lambda: rounds.round_request_from_pb(router_pb2.RoundRequest(timeout_ms=1, prefills=[prefill])), match)


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"sequence_ids": ["a", "b"], "attempts": [1]}, "2 sequences came with 1 attempts"),
        ({"sequence_ids": ["a", ""], "attempts": [1, 1]}, "got 0"),
        ({"sequence_ids": ["a" * 321], "attempts": [1]}, "got 321"),
    ],
)
def test_damaged_keys_are_refused(columns: dict[str, Any], match: str) -> None:
    _refused(lambda: columns_module.keys_from_pb(common_pb2.SequenceKeys(**columns)), match)


TREES: dict[str, Any] = {"root_positions": [1, 2], "num_rows": [1, 2], "token_ids": bytes(12), "depths": bytes(12)}
OUTCOMES: dict[str, Any] = {
    "statuses": ["ok", "ok"],
    "num_accepted": [0, 2],
    "token_ids": bytes(8),
    "bonus_tokens": [1, 2],
    "cached_lens": [3, 4],
    "num_hit_tokens": [0, 0],
}
SAMPLINGS: dict[str, Any] = {
    "temperatures": [0, 1],
    "top_ks": [0, 0],
    "top_ps": [1, 1],
    "min_ps": [0, 0],
    "seeds": [5, 6],
}
BLOCKS: dict[str, Any] = {
    "root_tokens": [1, 2],
    "context_lens": [3, 4],
    "samplings": common_pb2.Samplings(**SAMPLINGS),
    "uses_noise": [True, False],
    "truncation_penalties": [0, 2],
}
DRAFTS: dict[str, Any] = {
    "context_lens": [3, 4],
    "depths": [1, 3],
    "num_candidates": [2, 1],
    "token_ids": bytes(20),
    "scores": bytes(20),
}
EVENTS: dict[str, Any] = {
    "sequence_ids": ["a", "b"],
    "num_tokens": [1, 0],
    "token_ids": bytes(4),
    "num_tree_nodes": [7, 0],
    "cached_tokens": [0, 3],
}


def _trees(**changes: Any) -> Any:
    trees = router_pb2.Trees(**{"keys": KEYS, **TREES, **changes})
    return rounds.round_request_from_pb(router_pb2.RoundRequest(timeout_ms=1, trees=trees))


def _outcomes(**changes: Any) -> Any:
    return rounds.round_result_from_pb(
        router_pb2.RoundResult(outcomes=router_pb2.Outcomes(**{"keys": KEYS, **OUTCOMES, **changes}))
    )


def _blocks(**changes: Any) -> Any:
    blocks = drafter_pb2.DraftBlocks(**{"keys": KEYS, **BLOCKS, **changes})
    return drafts.draft_request_from_pb(drafter_pb2.DraftRequest(blocks=blocks))


def _drafts(**changes: Any) -> Any:
    return drafts.draft_result_from_pb(
        drafter_pb2.DraftResult(drafts=drafter_pb2.Drafts(**{"keys": KEYS, **DRAFTS, **changes}))
    )


def _events(**changes: Any) -> Any:
    return generations.events_from_pb(router_pb2.TokenBatch(**{**EVENTS, **changes}))


@pytest.mark.parametrize(
    ("make", "changes", "match"),
    [
        (_trees, {"num_rows": [3]}, "2 sequences came with 1 num_rows"),
        (_trees, {"root_positions": []}, "2 sequences came with 0 root_positions"),
        (_trees, {"num_rows": [3, 0]}, "that of 'b' has no rows"),
        (_trees, {"token_ids": bytes(8)}, "have 3 token_ids, which take 12 bytes, got 8"),
        (_trees, {"depths": bytes(13)}, "have 3 depths, which take 12 bytes, got 13"),
        (_trees, {"num_rows": [2**32 - 1] * 2}, "8589934590 token_ids"),
        (_outcomes, {"statuses": ["ok", "fine"]}, "'fine'"),
        (_outcomes, {"cached_lens": [1]}, "2 sequences came with 1 cached_lens"),
        (_outcomes, {"num_accepted": [0, 3]}, "take 12 bytes, got 8"),
        (_outcomes, {"messages": {2: "lost"}}, "message of entry 2 came with 2 entries"),
        (_blocks, {"keys": common_pb2.SequenceKeys(sequence_ids=["a"] * 2, attempts=[1, 2])}, "one block per sequence"),
        (_blocks, {"samplings": common_pb2.Samplings()}, "2 sequences came with 0 samplings"),
        (
            _blocks,
            {"samplings": common_pb2.Samplings(**{**SAMPLINGS, "seeds": [1]})},
            "2 sequences came with 1 seeds",
        ),
        (
            _blocks,
            {"samplings": common_pb2.Samplings(**{**SAMPLINGS, "temperatures": [0, -1]})},
            r"\[0, 100\], got -1",
        ),
        (_blocks, {"truncation_penalties": [0, -1]}, r"\[0, 1000\], got -1"),
        (_drafts, {"depths": [2, 3]}, "have 7 candidates, which take 28 bytes, got 20"),
        (_drafts, {"depths": [2, 2], "num_candidates": [2, 2]}, "have 8 candidates, which take 32 bytes, got 20"),
        (_drafts, {"depths": [2**32 - 1] * 2, "num_candidates": [2**32 - 1] * 2}, "got 20"),
        (_drafts, {"scores": bytes(16)}, "have 5 scores, which take 20 bytes, got 16"),
        (_drafts, {"num_candidates": [2]}, "2 sequences came with 1 num_candidates"),
        (_drafts, {"missing_from": {3: 1}}, "missing_from of entry 3"),
        (_drafts, {"errors": {2: "why"}}, "error of entry 2"),
        (_events, {"num_tokens": [1, 1]}, "take 8 bytes, got 4"),
        (_events, {"cached_tokens": [1]}, "2 sequences came with 1 cached_tokens"),
        (_events, {"ends": {2: router_pb2.SequenceEnd()}}, "end of entry 2"),
        (_events, {"ends": {1: router_pb2.SequenceEnd(finish_reason="bored")}}, "'bored'"),
    ],
)
def test_columns_that_do_not_fit_are_refused(make: Any, changes: dict[str, Any], match: str) -> None:
    make()
    _refused(lambda: make(**changes), match)
