"""What one message may hold, and what a drafter or a target of a given size can have answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cluster.wire import drafts, generations, pieces, rounds
from cluster.wire.limits import MAX_FEATURE_BYTES, MAX_SEQUENCES, MAX_STOP_TOKENS, MAX_TOKENS, check_address
from dflash_core.contracts import DrafterInfo
from dflash_core.errors import ProtocolError
from protos import common_pb2, drafter_pb2, router_pb2
from tests.deployments.scripted import INFO

DRAFTER = DrafterInfo("drafter", 5, 4, 8, 100, 2, "f")
KEY = common_pb2.SequenceKey(sequence_id="a", attempt=1)
MANY_KEYS = [KEY] * (MAX_SEQUENCES + 1)


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (lambda: drafts.draft_request_from_pb(drafter_pb2.DraftRequest(releases=MANY_KEYS)), ["releases", "65537"]),
        (
            lambda: drafts.draft_request_from_pb(
                drafter_pb2.DraftRequest(opens=[drafter_pb2.Open(key=KEY)] * (MAX_SEQUENCES + 1))
            ),
            ["opens", "65537"],
        ),
        (
            lambda: rounds.round_request_from_pb(router_pb2.RoundRequest(timeout_ms=1, releases=MANY_KEYS)),
            ["releases", "65537"],
        ),
        (
            lambda: pieces.token_ids_from_pb(common_pb2.Int32Array(data=bytes(4 * MAX_TOKENS + 4))),
            ["tokens", str(MAX_TOKENS + 1)],
        ),
        (
            lambda: generations.generation_from_pb(
                router_pb2.Generation(
                    stop_token_ids=[1] * (MAX_STOP_TOKENS + 1), sampling=common_pb2.Sampling(top_p=1.0)
                )
            ),
            ["stop tokens", "4097"],
        ),
        (
            lambda: drafts.context_batch_from_pb(
                drafter_pb2.ContextBatch(
                    chunks=[
                        drafter_pb2.ContextChunk(
                            key=KEY, features=common_pb2.Tensor(dtype="float32", data=bytes(MAX_FEATURE_BYTES // 2 + 4))
                        )
                    ]
                    * 2
                )
            ),
            ["bytes of features", str(MAX_FEATURE_BYTES + 8)],
        ),
        (lambda: generations.failure_from_pb(router_pb2.Failure(code="internal", message="x" * 5000)), ["5000"]),
        (lambda: drafts.drafter_info_from_pb(drafter_pb2.DrafterInfo(draft_block_size=1)), ["draft_block_size", "1"]),
    ],
)
def test_more_than_a_message_may_hold(read: Callable[[], Any], words: list[str]) -> None:
    with pytest.raises(ProtocolError) as caught:
        read()
    assert all(word in caught.value.message for word in words), caught.value.message


@pytest.mark.parametrize(
    "address", ["unix:1", "unix:/tmp/x", "dns:///host:1", "vsock:1:2", "host", "host:1", ":1", "a b.c:1"]
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ProtocolError, match="host:port"):
        check_address(address)


def _drafts(token_ids: list[int], scores: list[float], depth: int = 1) -> drafter_pb2.Drafts:
    return drafter_pb2.Drafts(
        keys=common_pb2.SequenceKeys(sequence_ids=["a"], attempts=[1]),
        context_lens=[1],
        depths=[depth],
        num_candidates=[len(token_ids) // depth],
        token_ids=np.asarray(token_ids, "<i4").tobytes(),
        scores=np.asarray(scores, "<f4").tobytes(),
    )


def _check(answer: drafter_pb2.Drafts) -> None:
    drafts.check_drafts(drafts.draft_result_from_pb(drafter_pb2.DraftResult(drafts=answer)), DRAFTER)


def test_a_drafter_s_sound_answer_passes() -> None:
    _check(drafter_pb2.Drafts())
    _check(_drafts([0, 99], [0.0, float("-inf")]))
    _check(_drafts([7, 3, 3, 7], [0.0] * 4, depth=2))
    mixed, nothing, wider = _drafts([7, 3], [0.0] * 2), _drafts([], []), _drafts([1, 2, 3], [0.0] * 3)
    for other in (nothing, wider):
        mixed.MergeFrom(other)
    mixed.token_ids = np.array([7, 3, 1, 2, 3], "<i4").tobytes()
    mixed.scores = np.zeros(5, "<f4").tobytes()
    _check(mixed)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (_drafts([0, 100], [0.0, -1.0]), ["[0, 100)", "100"]),
        (_drafts([-1, 3], [0.0, -1.0]), ["-1"]),
        (_drafts([7, 3, 7], [0.0, -1.0, -2.0]), ["twice"]),
        (_drafts([1, 2, 3], [0.0, -1.0, -2.0], depth=2), ["2 candidates", "8 bytes, got 12"]),
        (_drafts([1, 2], [0.0, float("nan")]), ["nan"]),
        (_drafts([1, 2], [0.0, float("inf")]), ["inf"]),
        (_drafts([1, 2, 3, 4, 5], [-1.0] * 5), ["4 num_candidates", "5"]),
        (_drafts([1] * 5, [-1.0] * 5, depth=5), ["4 depths", "5"]),
    ],
)
def test_what_a_drafter_cannot_have_drafted(answer: drafter_pb2.Drafts, words: list[str]) -> None:
    with pytest.raises(ProtocolError) as caught:
        _check(answer)
    assert all(word in caught.value.message for word in words), caught.value.message


@pytest.mark.parametrize(
    ("accepted", "bonus_token", "free_blocks", "words"),
    [
        ([256], 1, 0, ["[0, 256)", "256"]),
        ([-1], 1, 0, ["-1"]),
        ([], 256, 0, ["[-1, 256)", "256"]),
        ([], -2, 0, ["-2"]),
        ([], 1, 65, ["64 blocks", "65"]),
    ],
)
def test_what_a_target_cannot_have_answered(
    accepted: list[int], bonus_token: int, free_blocks: int, words: list[str]
) -> None:
    outcomes = router_pb2.Outcomes(token_ids=np.asarray(accepted, "<i4").tobytes(), bonus_tokens=[bonus_token])
    with pytest.raises(ProtocolError) as caught:
        rounds.check_round_result(router_pb2.RoundResult(outcomes=outcomes, free_blocks=free_blocks), INFO)
    assert all(word in caught.value.message for word in words), caught.value.message
