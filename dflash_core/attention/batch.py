"""What every layer of one forward needs to know about its packed rows; computed once per round.

```
rows     | s0 s0 s0 | s1 | s2 s2 …       packed, cu_rows = [0, 3, 4, …]
keys(s)  | page page page … page | in-flight rows of s |
position | 0 …      prefix_len−1 | positions[row]      |
```

In-flight key `k` is visible to row `r` iff `first_row[k] <= r < end_row[k]`, both counted in the packed batch, so a
row never sees another sequence. Every prefix key is visible. A sliding window W also asks for
`position[k] > position[r] − W`, of both kinds of key (ARCHITECTURE section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from dflash_core.attention.padding import PaddedGroup
    from dflash_core.attention.split_kv.work_list import HeadShape, WorkList

Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class RowGroup:
    """The in-flight rows of one sequence; `first_row` and `end_row` count from the sequence's own first row."""

    positions: Int32s  # [num_rows]
    first_row: Int32s  # [num_rows]
    end_row: Int32s  # [num_rows]
    prefix_len: int  # tokens in pages, at positions 0 … prefix_len − 1
    block_table: Sequence[int] | Int32s  # the pages' block ids; more than the prefix needs do no harm

    @classmethod
    def causal(cls, num_rows: int, prefix_len: int, block_table: Sequence[int] | Int32s) -> RowGroup:
        """A prefill chunk or a chain: each row sees itself and what came before."""
        rows = np.arange(num_rows, dtype=np.int32)
        return cls(
            rows + np.int32(prefix_len),
            rows,
            np.full(num_rows, num_rows, np.int32),
            prefix_len,
            block_table,
        )

    @classmethod
    def tree(
        cls,
        depths: Int32s,
        end_rows: Int32s,
        prefix_len: int,
        block_table: Sequence[int] | Int32s,
    ) -> RowGroup:
        """A draft tree in depth-first preorder: a row sees its ancestors and itself."""
        rows = np.arange(len(depths), dtype=np.int32)
        return cls(depths + np.int32(prefix_len), rows, end_rows, prefix_len, block_table)

    @classmethod
    def bidirectional(cls, num_rows: int, prefix_len: int, block_table: Sequence[int] | Int32s) -> RowGroup:
        """A drafter block: every row sees every row."""
        rows = np.arange(num_rows, dtype=np.int32)
        end = np.full(num_rows, num_rows, np.int32)
        return cls(
            rows + np.int32(prefix_len),
            np.zeros(num_rows, np.int32),
            end,
            prefix_len,
            block_table,
        )


@dataclass(frozen=True, slots=True)
class RaggedBatch:
    """Packed rows of many sequences, on the host. What a backend wants precomputed hangs in the last two."""

    cu_rows: Int32s  # [num_sequences + 1] running count of rows
    prefix_lens: Int32s  # [num_sequences] tokens in pages
    block_tables: Int32s  # [num_sequences, max_blocks] padded with 0
    positions: Int32s  # [num_rows]
    first_row: Int32s  # [num_rows] in the packed batch
    end_row: Int32s  # [num_rows] in the packed batch
    kv_block_size: int
    device: torch.device
    padded_groups: list[PaddedGroup] = field(default_factory=list, init=False, repr=False, compare=False)
    work_lists: dict[HeadShape, WorkList] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def num_rows(self) -> int:
        return len(self.positions)

    @property
    def num_sequences(self) -> int:
        return len(self.prefix_lens)

    @classmethod
    def pack(
        cls,
        groups: Sequence[RowGroup],
        kv_block_size: int,
        device: torch.device | str = "cpu",
    ) -> RaggedBatch:
        """Puts the groups behind one another, in their order."""
        counts = np.array([len(g.positions) for g in groups], np.int32)
        cu_rows = np.zeros(len(groups) + 1, np.int32)
        np.cumsum(counts, out=cu_rows[1:])
        offsets = np.repeat(cu_rows[:-1], counts)
        max_blocks = max((len(g.block_table) for g in groups), default=0)
        block_tables = np.zeros((len(groups), max_blocks), np.int32)
        for table, group in zip(block_tables, groups, strict=True):
            assert group.prefix_len <= len(group.block_table) * kv_block_size, "the prefix reaches beyond its blocks"
            table[: len(group.block_table)] = group.block_table
        return cls(
            cu_rows=cu_rows,
            prefix_lens=np.array([g.prefix_len for g in groups], np.int32),
            block_tables=block_tables,
            positions=np.concatenate([g.positions for g in groups]),
            first_row=np.concatenate([g.first_row for g in groups]) + offsets,
            end_row=np.concatenate([g.end_row for g in groups]) + offsets,
            kv_block_size=kv_block_size,
            device=torch.device(device),
        )
