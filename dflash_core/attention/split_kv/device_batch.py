"""A ragged batch on the device, padded to sizes that one CUDA graph can serve.

Sequences beyond the batch's own have no rows, and rows beyond them belong to no sequence: attention gives zeros for
those.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dflash_core.attention.batch import RaggedBatch
from dflash_core.staged_arrays import ArraySpec, StagedArrays


@dataclass(frozen=True, slots=True)
class BatchSize:
    """The shape of a device batch; a batch fits into any that is nowhere smaller."""

    num_rows: int
    num_sequences: int
    max_blocks: int

    @classmethod
    def of(cls, batch: RaggedBatch) -> BatchSize:
        return cls(batch.num_rows, batch.num_sequences, batch.block_tables.shape[1])

    def holds(self, other: BatchSize) -> bool:
        return (
            self.num_rows >= other.num_rows
            and self.num_sequences >= other.num_sequences
            and self.max_blocks >= other.max_blocks
        )


@dataclass(frozen=True, slots=True)
class DeviceBatch:
    """`RaggedBatch`'s arrays as int32 tensors of a padded size."""

    cu_rows: Tensor  # [num_sequences + 1]
    prefix_lens: Tensor  # [num_sequences]
    block_tables: Tensor  # [num_sequences, max_blocks]
    positions: Tensor  # [num_rows]
    first_row: Tensor  # [num_rows]
    end_row: Tensor  # [num_rows]

    @property
    def num_rows(self) -> int:
        return len(self.positions)

    @classmethod
    def of(cls, batch: RaggedBatch, device: torch.device) -> DeviceBatch:
        """Exactly as large as the batch."""
        size = BatchSize.of(batch)
        staged = StagedArrays(batch_arrays(size), device)
        fill_batch(staged, batch, size)
        staged.send()
        return cls.view(staged, size)

    @classmethod
    def view(cls, staged: StagedArrays, size: BatchSize) -> DeviceBatch:
        """The first rows and sequences of `staged`, which has the arrays of `batch_arrays` and may be larger."""
        device = staged.device
        return cls(
            cu_rows=device["cu_rows"][: size.num_sequences + 1],
            prefix_lens=device["prefix_lens"][: size.num_sequences],
            block_tables=device["block_tables"][: size.num_sequences],
            positions=device["positions"][: size.num_rows],
            first_row=device["first_row"][: size.num_rows],
            end_row=device["end_row"][: size.num_rows],
        )


def batch_arrays(size: BatchSize) -> dict[str, ArraySpec]:
    """What a batch needs of `StagedArrays`; `block_tables`, by far the largest, is last, and sent only in part."""
    rows, sequences = size.num_rows, size.num_sequences
    return {
        "positions": ArraySpec((rows,)),
        "first_row": ArraySpec((rows,)),
        "end_row": ArraySpec((rows,)),
        "prefix_lens": ArraySpec((sequences,)),
        "cu_rows": ArraySpec((sequences + 1,)),
        "block_tables": ArraySpec((sequences, size.max_blocks)),
    }


def fill_batch(staged: StagedArrays, batch: RaggedBatch, size: BatchSize) -> None:
    """Writes `batch`, padded to `size`, into the host's arrays."""
    real = BatchSize.of(batch)
    assert size.holds(real), f"a batch of {real} does not fit {size}"
    host = staged.host
    for name, values in (
        ("positions", batch.positions),
        ("first_row", batch.first_row),
        ("end_row", batch.end_row),
    ):
        host[name][: real.num_rows] = values
        host[name][real.num_rows : size.num_rows] = 0
    host["prefix_lens"][: real.num_sequences] = batch.prefix_lens
    host["prefix_lens"][real.num_sequences : size.num_sequences] = 0
    host["cu_rows"][: real.num_sequences + 1] = batch.cu_rows
    host["cu_rows"][real.num_sequences + 1 : size.num_sequences + 1] = real.num_rows
    # Blocks beyond a sequence's own are never read: what stands there from earlier rounds may stay.
    host["block_tables"][: real.num_sequences, : real.max_blocks] = batch.block_tables
