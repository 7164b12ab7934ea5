"""Damaged messages are refused by name, with both values."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.status import error_of
from cluster.wire import columns as columns_module
from cluster.wire import drafts, generations, pieces, rounds
from dflash_core.errors import ProtocolError
from protos import common_pb2, drafter_pb2, router_pb2


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
