"""The round's work list, shared by all layers: how many programs attend, over what, and into how much memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
from torch import Tensor

from dflash_core.attention.batch import RaggedBatch
from dflash_core.attention.split_kv.device_batch import DeviceBatch
from dflash_core.attention.split_kv.kernels.work_list import work_list_kernel
from dflash_core.attention.split_kv.tiles import CHUNK_UNIT, tile_rows, tiles_of

_ITEMS_PER_PROGRAM = 4  # beyond one item per tile and head: more splits than this never pay
_INTERPRETED_PROGRAMS = 5
_PADDED_SEQUENCES = 1024  # one kernel for all rounds of up to so many


@dataclass(frozen=True, slots=True)
class HeadShape:
    """What the attention layers of a model have in common."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def group_size(self) -> int:
        """Query heads per KV head."""
        assert self.num_heads % self.num_kv_heads == 0, f"{self.num_heads} heads over {self.num_kv_heads} KV heads"
        return self.num_heads // self.num_kv_heads


@dataclass(frozen=True, slots=True)
class GridSize:
    """What the host fixes before it knows lengths; equal for all rounds that replay one CUDA graph."""

    tile_rows: int
    num_programs: int
    max_items: int
    max_partial_rows: int
    is_causal: bool  # no row sees a later one: chunks, chains, trees

    @property
    def numbers(self) -> Tensor:
        """What the attention kernel needs, as operators take it: int64 `[4]` on the CPU.

        A compiler would compile anew for other integers; for another tensor it does not.
        """
        return torch.tensor([self.tile_rows, self.num_programs, self.max_partial_rows, int(self.is_causal)])

    @classmethod
    def of(
        cls, heads: HeadShape, num_rows: int, num_sequences: int, max_rows: int, is_causal: bool, device: torch.device
    ) -> GridSize:
        """For up to `num_rows` in-flight rows in all, of which at most `max_rows` in one of `num_sequences`."""
        rows = tile_rows(max_rows, heads.group_size, heads.head_dim, heads.dtype)
        num_programs = _INTERPRETED_PROGRAMS
        if device.type == "cuda":
            processors = torch.cuda.get_device_properties(device).multi_processor_count
            num_programs = processors * tiles_of(rows, heads.head_dim, heads.dtype).programs_per_sm
        whole_tiles = num_rows * heads.group_size // rows + num_sequences
        # A chunk's item writes at most one tile of partial results, of one KV head.
        rows_per_tile = min(-(-rows // heads.group_size), max_rows)
        return cls(
            tile_rows=rows,
            num_programs=num_programs,
            max_items=whole_tiles * heads.num_kv_heads + _ITEMS_PER_PROGRAM * num_programs,
            max_partial_rows=(2 * num_programs // heads.num_kv_heads + 1) * rows_per_tile,
            is_causal=is_causal,
        )


@dataclass(frozen=True, slots=True)
class WorkList:
    """A round's items, on the device. Comes from `make_work_list`."""

    batch: DeviceBatch
    grid: GridSize
    items: Tensor  # int32 [max_items, 4]: sequence, row tile, KV head, chunk
    row_splits: Tensor  # int32 [num_rows, 2]: splits of a row's sequence, the row's first partial result
    header: Tensor  # int32 [2]: number of items, keys in a chunk
    grid_numbers: Tensor  # `GridSize.numbers`

    @property
    def tensors(self) -> list[Tensor]:
        """What the attention kernel needs, as operators take it."""
        batch = self.batch
        arrays = [batch.cu_rows, batch.prefix_lens, batch.block_tables, batch.positions, batch.first_row, batch.end_row]
        return [*arrays, self.items, self.row_splits, self.header]


def make_work_list(batch: DeviceBatch, heads: HeadShape, grid: GridSize) -> WorkList:
    """Launches the work-list kernel; waits for nothing."""
    items, row_splits, header = work_list_op(
        batch.cu_rows,
        batch.prefix_lens,
        batch.num_rows,
        heads.num_kv_heads,
        heads.group_size,
        grid.tile_rows,
        grid.num_programs,
        grid.max_items,
        grid.max_partial_rows,
    )
    return WorkList(batch, grid, items, row_splits, header, grid.numbers)


def work_list_of(batch: RaggedBatch, heads: HeadShape, device: torch.device) -> WorkList:
    """The list of a batch as it is, unpadded."""
    max_rows = int(np.diff(batch.cu_rows).max())
    is_causal = bool((batch.first_row >= np.arange(batch.num_rows)).all())
    grid = GridSize.of(heads, batch.num_rows, batch.num_sequences, max_rows, is_causal, device)
    return make_work_list(DeviceBatch.of(batch, device), heads, grid)


@torch.library.custom_op("dflash::attention_work_list", mutates_args=())
def work_list_op(
    cu_rows: Tensor,
    prefix_lens: Tensor,
    num_rows: int,
    num_kv_heads: int,
    group_size: int,
    tile_rows: int,
    num_programs: int,
    max_items: int,
    max_partial_rows: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Items, row splits and header of a `WorkList`."""
    num_sequences = len(prefix_lens)
    items = cu_rows.new_empty(max_items, 4)
    row_splits = cu_rows.new_empty(num_rows, 2)
    header = cu_rows.new_empty(2)
    work_list_kernel[(num_sequences,)](
        cu_rows,
        prefix_lens,
        items,
        row_splits,
        header,
        num_sequences,
        num_rows,
        num_programs,
        max_items,
        max_partial_rows,
        NUM_KV_HEADS=num_kv_heads,
        GROUP_SIZE=group_size,
        TILE_ROWS=tile_rows,
        CHUNK_UNIT=CHUNK_UNIT,
        PADDED_SEQUENCES=max(_PADDED_SEQUENCES, triton.next_power_of_2(num_sequences)),
        SEQUENCES=16,
        CANDIDATES=128,
        ITEMS=128,
        num_warps=4,
    )
    return items, row_splits, header


@work_list_op.register_fake
def _(
    cu_rows: Tensor,
    prefix_lens: Tensor,
    num_rows: int,
    num_kv_heads: int,
    group_size: int,
    tile_rows: int,
    num_programs: int,
    max_items: int,
    max_partial_rows: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return cu_rows.new_empty(max_items, 4), cu_rows.new_empty(num_rows, 2), cu_rows.new_empty(2)
