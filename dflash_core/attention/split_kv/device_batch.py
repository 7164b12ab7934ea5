"""A ragged batch on the device: one int32 buffer, filled by one copy a round, at addresses that need not change.

A CUDA graph is captured once per padded size and reads the same buffer ever after. Sequences beyond the batch's own
have no rows, and rows beyond them belong to no sequence: attention gives zeros for those.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dflash_core.attention.batch import RaggedBatch

_ALIGNMENT = 32  # int32 words: Triton compiles another kernel for pointers that are not aligned to 16 bytes


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


class DeviceBatch:
    """`RaggedBatch`'s arrays as int32 tensors of a padded size."""

    cu_rows: Tensor  # [num_sequences + 1]
    prefix_lens: Tensor  # [num_sequences]
    block_tables: Tensor  # [num_sequences, max_blocks]
    positions: Tensor  # [num_rows]
    first_row: Tensor  # [num_rows]
    end_row: Tensor  # [num_rows]

    def __init__(self, size: BatchSize, device: torch.device) -> None:
        rows, sequences = size.num_rows, size.num_sequences
        shapes = [(sequences + 1,), (sequences,), (sequences, size.max_blocks), (rows,), (rows,), (rows,)]
        counts = [int(np.prod(shape)) for shape in shapes]
        starts = np.cumsum([0, *(-(-count // _ALIGNMENT) * _ALIGNMENT for count in counts)]).tolist()
        self.size = size
        self._buffer = torch.zeros(starts[-1], dtype=torch.int32, device=device)
        self._staging = torch.zeros(starts[-1], dtype=torch.int32, pin_memory=device.type == "cuda")
        staged = self._staging.numpy()
        tensors, self._arrays = [], list[npt.NDArray[np.int32]]()
        for start, count, shape in zip(starts, counts, shapes, strict=False):
            tensors.append(self._buffer[start : start + count].view(shape))
            self._arrays.append(staged[start : start + count].reshape(shape))
        self.cu_rows, self.prefix_lens, self.block_tables, self.positions, self.first_row, self.end_row = tensors

    @classmethod
    def of(cls, batch: RaggedBatch, device: torch.device) -> DeviceBatch:
        """Exactly as large as the batch, and loaded with it."""
        device_batch = cls(BatchSize.of(batch), device)
        device_batch.load(batch)
        return device_batch

    def load(self, batch: RaggedBatch) -> None:
        """Starts the copy of `batch`. The last one must have ended: its staging memory is used again."""
        size = BatchSize.of(batch)
        assert self.size.holds(size), f"a batch of {size} does not fit {self.size}"
        cu_rows, prefix_lens, block_tables, positions, first_row, end_row = self._arrays
        for array in self._arrays:
            array.fill(0)
        cu_rows.fill(batch.num_rows)
        cu_rows[: size.num_sequences + 1] = batch.cu_rows
        prefix_lens[: size.num_sequences] = batch.prefix_lens
        block_tables[: size.num_sequences, : size.max_blocks] = batch.block_tables
        positions[: size.num_rows] = batch.positions
        first_row[: size.num_rows] = batch.first_row
        end_row[: size.num_rows] = batch.end_row
        self._buffer.copy_(self._staging, non_blocking=True)
