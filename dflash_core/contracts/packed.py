"""The trees of a round in columns: as they are built, travel, and are packed into a forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from dflash_core.contracts.common import DraftTree, SequenceKey, TokenIds
from dflash_core.contracts.rounds import TreeRows

_NONE = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class PackedTreeRows(Sequence[TreeRows]):
    """Reads as a tuple of `TreeRows`, each of which is made when it is looked at.

    num_rows  │ 3       │ 1 │ 2    │     one entry per tree, as `keys` and `root_positions`
    token_ids │ a  a  a │ b │ c  c │     those of all trees, one after the other, as `depths`
    """

    keys: Sequence[SequenceKey]
    root_positions: Sequence[int]
    num_rows: Sequence[int]  # of each tree, its root included
    token_ids: TokenIds  # [rows]
    depths: npt.NDArray[np.int32]  # [rows]

    @classmethod
    def of(cls, trees: Sequence[TreeRows]) -> PackedTreeRows:
        """The same trees; where they are in columns already, themselves."""
        if isinstance(trees, PackedTreeRows):
            return trees
        return cls(
            keys=[rows.key for rows in trees],
            root_positions=[rows.root_position for rows in trees],
            num_rows=[rows.tree.num_rows for rows in trees],
            token_ids=np.concatenate([_NONE, *[rows.tree.token_ids for rows in trees]]),
            depths=np.concatenate([_NONE, *[rows.tree.depths for rows in trees]]),
        )

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[TreeRows]:
        begin = 0
        for key, root_position, count in zip(self.keys, self.root_positions, self.num_rows, strict=True):
            end = begin + count
            yield TreeRows(key, root_position, DraftTree(self.token_ids[begin:end], self.depths[begin:end]))
            begin = end

    @overload
    def __getitem__(self, place: int) -> TreeRows: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[TreeRows, ...]: ...

    def __getitem__(self, place: int | slice) -> TreeRows | tuple[TreeRows, ...]:
        return tuple(self)[place]
