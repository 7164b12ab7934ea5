"""The *plan* stage: one round's request, from what its sequences need and what the target can take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cluster.router.latency import RoundLoad
from cluster.router.links import TargetLink
from cluster.router.sequence import PREFILLING, RUNNING, Sequence
from cluster.router.settings import RouterSettings
from cluster.router.speculation import Speculation
from cluster.router.tree_planner import PlannedTrees, TreePlanner
from dflash_core.contracts import PackedTreeRows, Prefill, Refill, RoundRequest
from dflash_core.trees.build import NodeBudget

_NOTHING = np.empty(0, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """A request and the sequences behind its pieces, in the order of the outcomes: prefills, then trees."""

    request: RoundRequest
    trees: PackedTreeRows  # the request's
    sequences: tuple[Sequence, ...]
    planned: PlannedTrees

    @property
    def is_empty(self) -> bool:
        return not (self.sequences or self.request.releases or self.request.refills)


def plan_round(
    round_id: int,
    link: TargetLink,
    sequences: list[Sequence],
    speculation: Speculation,
    planner: TreePlanner,
    settings: RouterSettings,
    queued_sequences: int,
) -> RoundPlan:
    """Fills `max_rows`: a root of every running sequence first, then prefill chunks, then draft nodes.

    Prefill comes before nodes, since a node is a guess and a prompt token is not. `sequences` are those of the
    micro-batch, in the order in which the target opened them.
    """
    ready = [sequence for sequence in sequences if sequence.is_announced]
    running = [sequence for sequence in ready if sequence.phase is RUNNING]
    rows_left = link.info.max_rows - len(running)
    prefilling, prefills = _prefill_chunks(ready, min(rows_left, settings.prefill_chunk_tokens))
    rows_left -= sum(len(prefill.token_ids) for prefill in prefills)
    max_nodes = min(rows_left, link.info.max_tree_rows - len(running))
    planned = _plan_trees(running, prefills, speculation, planner, max_nodes)
    trees = PackedTreeRows(
        [sequence.key for sequence in running],
        [sequence.root_position for sequence in running],
        planned.num_rows,
        planned.token_ids,
        planned.depths,
    )
    request = RoundRequest(
        round_id=round_id,
        prefills=prefills,
        trees=trees,
        releases=link.take_releases(),
        refills=_refills(ready),
        timeout_ms=settings.round_timeout_ms,
        queued_sequences=queued_sequences,
    )
    for sequence in running:
        sequence.drafts = None  # good for this root only
    return RoundPlan(request, trees, (*prefilling, *running), planned)


def _plan_trees(
    running: list[Sequence],
    prefills: tuple[Prefill, ...],
    speculation: Speculation,
    planner: TreePlanner,
    max_nodes: int,
) -> PlannedTrees:
    drafted = planner.drafted(running)
    if not drafted.places:
        return planner.build(running, drafted, NodeBudget.of(0))
    root_context = sum(sequence.root_position for sequence in running)
    chunks = RoundLoad.planned(prefills, ())
    fixed = RoundLoad(
        chunks.num_rows + len(running),
        chunks.num_sequences + len(running),
        chunks.context_tokens + root_context,
        chunks.context_rows + root_context,
        has_nodes=True,  # drafts are there: what they cost besides rows is spent
    )
    budget = speculation.node_budget(fixed, root_context / len(running), drafted, len(running), max_nodes)
    return planner.build(running, drafted, budget)


def _prefill_chunks(ready: list[Sequence], max_tokens: int) -> tuple[list[Sequence], tuple[Prefill, ...]]:
    """First come, first served: a later prompt gets rows only when the earlier ones need no more."""
    sequences: list[Sequence] = []
    chunks: list[Prefill] = []
    for sequence in ready:
        if max_tokens <= 0:
            break
        if sequence.phase is not PREFILLING:
            continue
        start = sequence.cached_len
        token_ids = sequence.tokens_between(start, start + max_tokens)
        max_tokens -= len(token_ids)
        end, total = start + len(token_ids), len(sequence.token_ids)
        drafter = sequence.drafter
        sequences.append(sequence)
        chunks.append(
            Prefill(
                key=sequence.key,
                token_ids=token_ids,
                start=start,
                is_last=end == total,
                num_prompt_tokens=sequence.request.num_prompt_tokens,
                sampling=sequence.request.sampling,
                drafter_address=drafter.address if drafter is not None and sequence.is_fed else "",
                features_from=start,
                following=sequence.tokens_between(end, total) if start == 0 else _NOTHING,
            )
        )
    return sequences, tuple(chunks)


def _refills(ready: list[Sequence]) -> tuple[Refill, ...]:
    refills: list[Refill] = []
    for sequence in ready:
        drafter = sequence.drafter
        if sequence.refill_from is None or drafter is None or drafter.is_lost:
            continue
        address = drafter.address if sequence.unfed_from is None else ""
        refills.append(Refill(sequence.key, sequence.refill_from, address))
        sequence.refill_from = None
    return tuple(refills)
