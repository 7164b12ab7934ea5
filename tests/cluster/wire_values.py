"""Hypothesis strategies for everything that messages carry."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from cluster.requests import FinishReason, GenerationRequest, GenerationStatistics, TokenEvent
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
