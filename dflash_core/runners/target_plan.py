"""`RoundPlan`: what of a round's request runs, prefill chunks first, then trees, each in the request's order."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter

import numpy as np

from dflash_core.contracts import Outcome, OutcomeStatus, Prefill, RoundRequest, SequenceKey, TreeRows
from dflash_core.runners.target_sequences import NO_TOKEN, RowsRefused, SequenceState, TargetSequences

_NO_INTS = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class PlannedPrefill:
    place: int  # of its outcome in the round's result
    prefill: Prefill  # as it is computed: without the tokens that the prefix cache has
    sequence: SequenceState
    num_hit_tokens: int


@dataclass(frozen=True, slots=True)
class PlannedTree:
    place: int
    rows: TreeRows
    sequence: SequenceState


@dataclass(slots=True)
class RoundPlan:
    """What was admitted, and the outcomes of what was not; `outcomes` has None where the round will fill one in."""

    prefills: list[PlannedPrefill] = field(default_factory=list)
    trees: list[PlannedTree] = field(default_factory=list)
    outcomes: list[Outcome | None] = field(default_factory=list)
    num_prefill_rows: int = 0
    num_tree_rows: int = 0

    @property
    def num_rows(self) -> int:
        return self.num_prefill_rows + self.num_tree_rows

    def sequences(self) -> list[SequenceState]:
        """Those with rows in the round, in the order of their rows."""
        return [p.sequence for p in self.prefills] + [t.sequence for t in self.trees]


def admit(request: RoundRequest, sequences: TargetSequences, max_rows: int, max_tree_rows: int) -> RoundPlan:
    """Takes what is sound and fits, the oldest sequences first: whoever is preempted for them has no rows yet."""
    pieces: list[Prefill | TreeRows] = [*request.prefills, *request.trees]
    first_places = {piece.key.sequence_id: place for place, piece in reversed(list(enumerate(pieces)))}
    opened = [sequences.opened(piece.key) for piece in pieces]
    plan = RoundPlan(outcomes=[None] * len(pieces))
    for place in sorted(range(len(pieces)), key=opened.__getitem__):
        piece = pieces[place]
        try:
            if first_places[piece.key.sequence_id] != place:
                raise RowsRefused(OutcomeStatus.MISMATCH, f"{piece.key.sequence_id} appears twice in the round")
            if isinstance(piece, Prefill):
                _admit_prefill(plan, place, piece, sequences, max_rows)
            else:
                _admit_tree(plan, place, piece, sequences, max_rows, max_tree_rows)
        except RowsRefused as refusal:
            plan.outcomes[place] = _refused(piece.key, sequences, refusal)
    plan.prefills.sort(key=attrgetter("place"))
    plan.trees.sort(key=attrgetter("place"))
    return plan


def _admit_prefill(plan: RoundPlan, place: int, prefill: Prefill, sequences: TargetSequences, max_rows: int) -> None:
    _refuse_overflow("rows", plan.num_rows + len(prefill.token_ids), "max_rows", max_rows)
    sequence = sequences.admit_prefill(prefill)
    num_hit_tokens = sequence.cached_len - prefill.start
    computed = prefill.skip(num_hit_tokens)
    plan.prefills.append(PlannedPrefill(place, computed, sequence, num_hit_tokens))
    plan.num_prefill_rows += len(computed.token_ids)


def _admit_tree(
    plan: RoundPlan, place: int, rows: TreeRows, sequences: TargetSequences, max_rows: int, max_tree_rows: int
) -> None:
    num_rows = len(rows.tree.token_ids)
    _refuse_overflow("rows", plan.num_rows + num_rows, "max_rows", max_rows)
    _refuse_overflow("tree rows", plan.num_tree_rows + num_rows, "max_tree_rows", max_tree_rows)
    plan.trees.append(PlannedTree(place, rows, sequences.admit_tree(rows, max_tree_rows)))
    plan.num_tree_rows += num_rows


def _refused(key: SequenceKey, sequences: TargetSequences, refusal: RowsRefused) -> Outcome:
    return Outcome(key, refusal.status, _NO_INTS, NO_TOKEN, sequences.cached_len(key), refusal.message)


def _refuse_overflow(what: str, count: int, limit_name: str, limit: int) -> None:
    if count > limit:
        raise RowsRefused(OutcomeStatus.INVALID, f"the round would have {count} {what}, {limit_name} is {limit}")
