"""`PackedRows`: a round plan's rows as arrays, prefill chunks first, then trees.

```
packed rows | chunk of s0 | chunk of s1 | tree of s2 | tree of s3 |
choices     |           ↑             ↑ | every row  | every row  |   last rows of last chunks, then every tree row
slots       | in pages, written at once | where the row goes if it is accepted, −1 for nowhere |
```
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dflash_core.attention.batch import RaggedBatch
from dflash_core.cache.pools import Slots
from dflash_core.runners.target_plan import RoundPlan
from dflash_core.runners.target_sequences import SequenceState
from dflash_core.sampling.arrays import SamplingArrays
from dflash_core.trees import structure

_NO_INTS = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Rows of trees count from the first tree row; `cu_tree_rows` says whose they are."""

    batch: RaggedBatch
    token_ids: npt.NDArray[np.int32]  # [num_rows]
    slots: Slots  # [num_rows] −1 for tree rows beyond the sequence's blocks
    logit_rows: npt.NDArray[np.int64]  # [num_choices] last rows of last chunks, then every tree row
    sampling: SamplingArrays  # of each choice
    num_prefill_rows: int
    num_last_chunks: int  # num_choices - num_tree_rows
    tree_token_ids: npt.NDArray[np.int32]  # [num_tree_rows]
    tree_parents: npt.NDArray[np.int32]
    tree_end_rows: npt.NDArray[np.int32]
    cu_tree_rows: npt.NDArray[np.int64]  # [num_trees + 1]
    wants_features: bool  # a drafter waits for those of some sequence

    @property
    def num_rows(self) -> int:
        return len(self.token_ids)

    @property
    def num_choices(self) -> int:
        return len(self.logit_rows)

    @property
    def prefill_slots(self) -> Slots:
        return self.slots[: self.num_prefill_rows]

    @property
    def tree_slots(self) -> Slots:
        return self.slots[self.num_prefill_rows :]


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
    split = plan.num_prefill_rows
    rows = np.arange(plan.num_rows, dtype=np.int32)
    # Prefill rows are chains: each sees itself and what came before in its chunk.
    positions = rows - np.repeat(cu_rows[:-1] - prefix_lens, counts)
    end_row = np.repeat(cu_rows[1:], counts)
    tree_ids = tree_parents = tree_end_rows = _NO_INTS
    if plan.trees:
        depths = _joined([t.rows.tree.depths for t in plan.trees])
        tree_ids = _joined([t.rows.tree.token_ids for t in plan.trees])
        tree_parents, tree_end_rows = structure.parents(depths), structure.end_rows(depths)
        positions[split:] = np.repeat(prefix_lens[len(prefill_lens) :], tree_lens) + depths
        end_row[split:] = tree_end_rows + np.int32(split)
    sequences = plan.sequences()
    block_tables = _block_tables(sequences, kv_block_size)

    last_chunks = [i for i, p in enumerate(plan.prefills) if p.prefill.is_last]
    logit_rows = np.concatenate([cu_rows[1:][last_chunks] - 1, rows[split:]]).astype(np.int64)
    params = [plan.prefills[i].prefill.sampling for i in last_chunks] + [t.sequence.sampling for t in plan.trees]
    return PackedRows(
        batch=RaggedBatch(
            cu_rows=cu_rows,
            prefix_lens=prefix_lens,
            block_tables=block_tables,
            positions=positions,
            first_row=rows,
            end_row=end_row,
            kv_block_size=kv_block_size,
            device=device,
        ),
        token_ids=np.concatenate([*(p.prefill.token_ids for p in plan.prefills), tree_ids], dtype=np.int32),
        slots=_slots(sequences, block_tables, counts, positions, kv_block_size),
        logit_rows=logit_rows,
        # The key of the noise is the position of the token being chosen: one behind the row's own.
        sampling=SamplingArrays.repeated(params, [1] * len(last_chunks) + tree_lens, positions[logit_rows] + 1),
        num_prefill_rows=split,
        num_last_chunks=len(last_chunks),
        tree_token_ids=tree_ids,
        tree_parents=tree_parents,
        tree_end_rows=tree_end_rows,
        cu_tree_rows=cu_rows[len(prefill_lens) :].astype(np.int64) - split,
        wants_features=any(sequence.drafter_address for sequence in sequences),
    )


def _block_tables(sequences: Sequence[SequenceState], kv_block_size: int) -> npt.NDArray[np.int32]:
    tables = np.zeros((len(sequences), max(len(s.block_table) for s in sequences)), np.int32)
    for row, sequence in zip(tables, sequences, strict=True):
        num_full = sequence.cached_len // kv_block_size
        row[: len(sequence.block_table)] = sequence.table_array.of(sequence.block_table, num_full)
    return tables


def _slots(
    sequences: Sequence[SequenceState],
    block_tables: npt.NDArray[np.int32],
    counts: npt.NDArray[np.int32],
    positions: npt.NDArray[np.int32],
    kv_block_size: int,
) -> Slots:
    num_blocks = np.repeat(np.array([len(s.block_table) for s in sequences]), counts)
    owners = np.repeat(np.arange(len(sequences)), counts)
    blocks = positions // kv_block_size
    is_there = blocks < num_blocks
    found = block_tables[owners, np.where(is_there, blocks, 0)].astype(np.int64)
    slots: Slots = np.where(is_there, found * kv_block_size + positions % kv_block_size, -1)
    return slots


def _joined(arrays: list[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
