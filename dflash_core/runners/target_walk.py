"""From the target's choices to outcomes: which rows are accepted, where they are committed, what each sequence gets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dflash_core.cache.blocks import BlockManager
from dflash_core.cache.pools import Slots, slots_of
from dflash_core.contracts import Outcome, OutcomeStatus, SequenceKey
from dflash_core.runners.target_plan import PackedRows, PlannedPrefill, PlannedTree, RoundPlan
from dflash_core.runners.target_sequences import NO_TOKEN
from dflash_core.trees.walk import accepted_rows

Rows = npt.NDArray[np.int64]

_NO_TOKENS = np.zeros(0, np.int32)
_NO_ROWS = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class CommittedRows:
    """Rows whose tokens are now part of their sequences."""

    prefill_slots: Slots  # [num_prefill_rows] where the prefill rows went during the forward
    tree_rows: Rows  # [n] roots and accepted rows, counted from the first tree row
    tree_slots: Slots  # [n] where they go

    def all_rows(self, num_prefill_rows: int) -> Rows:
        """Every committed row, counted in the packed batch."""
        return np.concatenate([np.arange(num_prefill_rows), self.tree_rows + num_prefill_rows])

    @property
    def all_slots(self) -> Slots:
        return np.concatenate([self.prefill_slots, self.tree_slots])


def walk(plan: RoundPlan, rows: PackedRows, choices: npt.NDArray[np.int64], blocks: BlockManager) -> CommittedRows:
    """Fills in the plan's outcomes and moves its sequences on.

    `choices [num_choices]`: the token that the target chose after each of `rows.logit_rows`.
    """
    last_chunk_choices = iter(choices[: rows.num_last_chunks].tolist())
    for planned in plan.prefills:
        bonus = next(last_chunk_choices) if planned.prefill.is_last else None
        plan.outcomes[planned.place] = _finish_prefill(planned, bonus)
    if not plan.trees:
        return CommittedRows(rows.prefill_slots, _NO_ROWS, _NO_ROWS)

    tree_choices = choices[rows.num_last_chunks :]
    accepted = np.flatnonzero(accepted_rows(rows.tree_token_ids, rows.tree_parents, rows.tree_end_rows, tree_choices))
    bounds = np.searchsorted(accepted, rows.cu_tree_rows).tolist()
    tree_rows: list[Rows] = []
    tree_slots: list[Slots] = []
    for i, planned_tree in enumerate(plan.trees):
        path = accepted[bounds[i] : bounds[i + 1]]
        slots = _finish_tree(plan, planned_tree, path, rows, tree_choices, blocks)
        tree_rows.append(path[: len(slots)])
        tree_slots.append(slots)
    return CommittedRows(rows.prefill_slots, np.concatenate(tree_rows), np.concatenate(tree_slots))


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


def _finish_tree(
    plan: RoundPlan,
    planned: PlannedTree,
    path: Rows,
    rows: PackedRows,
    tree_choices: npt.NDArray[np.int64],
    blocks: BlockManager,
) -> Slots:
    """Commits the root and as much of the accepted path as there are blocks for; returns their slots.

    A path cut short loses no token: the choice at its last row is the next token of the rest, made anew next round.
    """
    sequence = planned.sequence
    start = sequence.cached_len
    path = path[: blocks.room(sequence.block_table) - start]
    bonus = int(tree_choices[path[-1]])
    if bonus == NO_TOKEN:
        plan.outcomes[planned.place] = _no_token(sequence.key, start, start + len(path))
        return _NO_ROWS
    end = start + len(path)
    blocks.extend(sequence.block_table, end)
    sequence.cached_len, sequence.bonus_token = end, bonus
    plan.outcomes[planned.place] = Outcome(sequence.key, OutcomeStatus.OK, rows.tree_token_ids[path[1:]], bonus, end)
    return slots_of(sequence.block_table, start, end, blocks.kv_block_size)


def _no_token(key: SequenceKey, cached_len: int, position: int) -> Outcome:
    message = f"the model's logits for position {position} are not numbers"
    return Outcome(key, OutcomeStatus.INVALID, _NO_TOKENS, NO_TOKEN, cached_len, message)
