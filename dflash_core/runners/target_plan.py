"""`RoundPlan`: the rows of one target round, packed: prefill chunks first, then trees, each in the request's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter

import numpy as np
import numpy.typing as npt
import torch

from dflash_core.attention.batch import RaggedBatch
from dflash_core.cache.pools import Slots, slots_of
from dflash_core.contracts import Outcome, OutcomeStatus, Prefill, RoundRequest, SamplingParams, SequenceKey, TreeRows
from dflash_core.runners.target_sequences import NO_TOKEN, RowsRefused, SequenceState, TargetSequences
from dflash_core.trees import structure

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


@dataclass(frozen=True, slots=True)
class PackedRows:
    """The plan's rows as arrays. Rows of trees count from the first tree row; `cu_tree_rows` says whose they are."""

    batch: RaggedBatch
    token_ids: npt.NDArray[np.int64]  # [num_rows]
    prefill_slots: Slots  # [num_prefill_rows]
    logit_rows: npt.NDArray[np.int64]  # [num_choices] last rows of last chunks, then every tree row
    sampling: list[tuple[SamplingParams, int]]  # [num_choices] with the position of the token being chosen
    num_last_chunks: int  # num_choices - num_tree_rows
    tree_token_ids: npt.NDArray[np.int32]  # [num_tree_rows]
    tree_parents: npt.NDArray[np.int32]
    tree_end_rows: npt.NDArray[np.int32]
    cu_tree_rows: npt.NDArray[np.int64]  # [num_trees + 1]


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


def pack(plan: RoundPlan, kv_block_size: int, device: torch.device) -> PackedRows:
    """The arrays of a plan that has rows."""
    prefill_lens = [len(p.prefill.token_ids) for p in plan.prefills]
    tree_lens = [len(t.rows.tree.token_ids) for t in plan.trees]
    counts = np.array(prefill_lens + tree_lens, np.int32)
    cu_rows = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=cu_rows[1:])
    prefix_lens = np.array(
        [p.prefill.start for p in plan.prefills] + [t.sequence.cached_len for t in plan.trees], np.int32
    )

    split, num_rows = plan.num_prefill_rows, plan.num_rows
    rows = np.arange(num_rows, dtype=np.int32)
    positions = rows + np.repeat(prefix_lens - cu_rows[:-1], counts)
    end_row = np.repeat(cu_rows[1:], counts)
    tree_ids = tree_parents = tree_end_rows = _NO_INTS
    if plan.trees:
        depths = _joined([t.rows.tree.depths for t in plan.trees])
        tree_ids = _joined([t.rows.tree.token_ids for t in plan.trees])
        tree_parents, tree_end_rows = structure.parents(depths), structure.end_rows(depths)
        positions[split:] = np.repeat(prefix_lens[len(prefill_lens) :], tree_lens) + depths
        end_row[split:] = tree_end_rows + np.int32(split)

    last_chunks = [i for i, p in enumerate(plan.prefills) if p.prefill.is_last]
    sampling = [(plan.prefills[i].prefill.sampling, int(prefix_lens[i]) + prefill_lens[i]) for i in last_chunks]
    chosen_positions = iter((positions[split:] + 1).tolist())
    for tree, length in zip(plan.trees, tree_lens, strict=True):
        params = tree.sequence.sampling
        sampling += [(params, next(chosen_positions)) for _ in range(length)]
    return PackedRows(
        batch=RaggedBatch(
            cu_rows=cu_rows,
            prefix_lens=prefix_lens,
            block_tables=_block_tables(plan.sequences()),
            positions=positions,
            first_row=rows,
            end_row=end_row,
            kv_block_size=kv_block_size,
            device=device,
        ),
        token_ids=np.concatenate([*(p.prefill.token_ids for p in plan.prefills), tree_ids]).astype(np.int64),
        prefill_slots=_joined_slots(
            [
                slots_of(p.sequence.block_table, p.prefill.start, p.prefill.start + length, kv_block_size)
                for p, length in zip(plan.prefills, prefill_lens, strict=True)
            ]
        ),
        logit_rows=np.concatenate([cu_rows[1:][last_chunks] - 1, rows[split:]]).astype(np.int64),
        sampling=sampling,
        num_last_chunks=len(last_chunks),
        tree_token_ids=tree_ids,
        tree_parents=tree_parents,
        tree_end_rows=tree_end_rows,
        cu_tree_rows=cu_rows[len(prefill_lens) :].astype(np.int64) - split,
    )


def _block_tables(sequences: Sequence[SequenceState]) -> npt.NDArray[np.int32]:
    tables = np.zeros((len(sequences), max(len(s.block_table) for s in sequences)), np.int32)
    for row, sequence in zip(tables, sequences, strict=True):
        row[: len(sequence.block_table)] = sequence.block_table
    return tables


def _joined(arrays: list[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _joined_slots(arrays: list[Slots]) -> Slots:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.int64)


def _refuse_overflow(what: str, count: int, limit_name: str, limit: int) -> None:
    if count > limit:
        raise RowsRefused(OutcomeStatus.INVALID, f"the round would have {count} {what}, {limit_name} is {limit}")
