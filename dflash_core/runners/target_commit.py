"""Before a pass: blocks for every path that may be accepted. After it: what each sequence gets, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dflash_core.cache.blocks import BlockManager
from dflash_core.contracts import Outcome, OutcomeStatus, SequenceKey
from dflash_core.runners.target_pack import PackedRows
from dflash_core.runners.target_pass import PassResult
from dflash_core.runners.target_plan import PlannedPrefill, PlannedTree, RoundPlan
from dflash_core.runners.target_sequences import NO_TOKEN, SequenceState

Rows = npt.NDArray[np.int64]

_NO_TOKENS = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class CommittedSpan:
    """Packed rows whose tokens are now part of a sequence, at positions start …"""

    sequence: SequenceState
    start: int
    rows: Rows  # [num_tokens] counted in the packed batch


def reserve_paths(plan: RoundPlan, blocks: BlockManager) -> None:
    """Gives each tree's sequence the blocks of its deepest path, or as many as are free.

    The walk happens on the device, which cannot ask for blocks: so every row must know its slot beforehand.
    """
    for planned in plan.trees:
        table = planned.sequence.block_table
        deepest = planned.sequence.cached_len + 1 + int(planned.rows.tree.depths.max())
        blocks.extend(table, min(deepest, blocks.room(table)))


def commit(plan: RoundPlan, rows: PackedRows, result: PassResult, blocks: BlockManager) -> list[CommittedSpan]:
    """Fills in the plan's outcomes, moves its sequences on and frees the blocks that their paths did not need."""
    spans: list[CommittedSpan] = []
    last_chunk_choices = iter(result.choices[: rows.num_last_chunks].tolist())
    first_row = 0
    for planned in plan.prefills:
        bonus = next(last_chunk_choices) if planned.prefill.is_last else None
        plan.outcomes[planned.place] = _finish_prefill(planned, bonus)
        end_row = first_row + len(planned.prefill.token_ids)
        if planned.sequence.cached_len > planned.prefill.start:
            spans.append(CommittedSpan(planned.sequence, planned.prefill.start, np.arange(first_row, end_row)))
        first_row = end_row

    accepted = np.flatnonzero(result.accepted & (rows.tree_slots >= 0))
    tree_choices = result.choices[rows.num_last_chunks :]
    bounds = np.searchsorted(accepted, rows.cu_tree_rows).tolist()
    for i, planned_tree in enumerate(plan.trees):
        path = accepted[bounds[i] : bounds[i + 1]]
        start = planned_tree.sequence.cached_len
        plan.outcomes[planned_tree.place] = _finish_tree(planned_tree, path, rows, tree_choices)
        blocks.trim(planned_tree.sequence.block_table, planned_tree.sequence.cached_len)
        if planned_tree.sequence.cached_len > start:
            spans.append(CommittedSpan(planned_tree.sequence, start, path + rows.num_prefill_rows))
    return spans


def _finish_prefill(planned: PlannedPrefill, bonus: int | None) -> Outcome:
    """`bonus`: the token chosen after a last chunk, None after others."""
    sequence, prefill = planned.sequence, planned.prefill
    end = prefill.start + len(prefill.token_ids)
    if bonus == NO_TOKEN:
        return _no_token(planned.sequence.key, prefill.start, end)
    sequence.cached_len = end
    if bonus is not None:
        sequence.bonus_token = bonus
    return Outcome(
        sequence.key,
        OutcomeStatus.OK,
        _NO_TOKENS,
        sequence.bonus_token,
        end,
        num_hit_tokens=planned.num_hit_tokens,
    )


def _finish_tree(planned: PlannedTree, path: Rows, rows: PackedRows, tree_choices: Rows) -> Outcome:
    """`path`: the root and the accepted rows that have slots.

    A path cut short, for want of blocks, loses no token: the choice at its last row is the next token of the rest, made
    anew next round.
    """
    sequence = planned.sequence
    end = sequence.cached_len + len(path)
    bonus = int(tree_choices[path[-1]])
    if bonus == NO_TOKEN:
        return _no_token(sequence.key, sequence.cached_len, end)
    sequence.cached_len, sequence.bonus_token = end, bonus
    return Outcome(sequence.key, OutcomeStatus.OK, rows.tree_token_ids[path[1:]], bonus, end)


def _no_token(key: SequenceKey, cached_len: int, position: int) -> Outcome:
    message = f"the model's logits for position {position} are not numbers"
    return Outcome(key, OutcomeStatus.INVALID, _NO_TOKENS, NO_TOKEN, cached_len, message)
