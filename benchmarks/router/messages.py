"""What the messages of one round cost the router by themselves: made and serialised, or parsed and read."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.router.instant import DEPTH, PROMPT_TOKENS, InstantDrafter, InstantTarget, Load
from cluster.requests import TokenEvent
from cluster.wire.drafts import draft_request_to_pb, draft_result_from_pb, draft_result_to_pb
from cluster.wire.generations import events_to_pb
from cluster.wire.rounds import round_request_to_pb, round_result_from_pb, round_result_to_pb
from dflash_core.contracts import (
    DraftBlock,
    DraftRequest,
    DraftResult,
    DraftTree,
    PackedDraftBlocks,
    PackedTreeRows,
    RoundRequest,
    SamplingParams,
    SequenceKey,
    TreeRows,
)
from protos import drafter_pb2, router_pb2

_NUM_CALLS = 50


@dataclass(frozen=True, slots=True)
class MessageCosts:
    """Milliseconds of CPU a round, medians; and the bytes that leave and reach the router."""

    round_request_ms: float
    round_result_ms: float
    draft_request_ms: float
    draft_result_ms: float
    events_ms: float
    num_bytes: int

    @property
    def total_ms(self) -> float:
        return (
            self.round_request_ms + self.round_result_ms + self.draft_request_ms + self.draft_result_ms + self.events_ms
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def message_costs(load: Load) -> MessageCosts:
    keys = [SequenceKey(f"sequence-{number}.router.{number}", 1) for number in range(load.num_sequences)]
    blocks = PackedDraftBlocks.of([DraftBlock(key, 1, PROMPT_TOKENS, SamplingParams(seed=1)) for key in keys])
    drafts = DraftResult(1, InstantDrafter().draft(blocks))
    trees = PackedTreeRows.of([TreeRows(key, PROMPT_TOKENS, _tree(load.tree_budget)) for key in keys])
    request = RoundRequest(1, trees=trees)
    result = InstantTarget(load).run_round(request).result
    events = [TokenEvent(o.key.sequence_id, o.token_ids, num_tree_nodes=load.tree_budget) for o in result.outcomes]
    results, draft_results = round_result_to_pb(result), draft_result_to_pb(drafts)
    result_bytes, drafts_bytes = results.SerializeToString(), draft_results.SerializeToString()
    made = [
        lambda: round_request_to_pb(request).SerializeToString(),
        lambda: draft_request_to_pb(DraftRequest(1, blocks=blocks)).SerializeToString(),
        lambda: events_to_pb(events).SerializeToString(),
    ]
    return MessageCosts(
        round_request_ms=_median_ms(made[0]),
        round_result_ms=_median_ms(lambda: round_result_from_pb(router_pb2.RoundResult.FromString(result_bytes))),
        draft_request_ms=_median_ms(made[1]),
        draft_result_ms=_median_ms(lambda: draft_result_from_pb(drafter_pb2.DraftResult.FromString(drafts_bytes))),
        events_ms=_median_ms(made[2]),
        num_bytes=len(result_bytes) + len(drafts_bytes) + sum(len(make()) for make in made),
    )


def _tree(num_nodes: int) -> DraftTree:
    """Chains of the draft's depth, side by side."""
    depths = [0, *(1 + node % DEPTH for node in range(num_nodes))]
    return DraftTree(np.arange(num_nodes + 1, dtype=np.int32), np.asarray(depths, np.int32))


def _median_ms(run: Callable[[], object]) -> float:
    times = []
    for _ in range(_NUM_CALLS):
        begin = time.thread_time()
        run()
        times.append(time.thread_time() - begin)
    return statistics.median(times) * 1e3
