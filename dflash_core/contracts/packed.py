"""`Packed`: what a round says of all its sequences, in columns, which read as a tuple of what it says of each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Self, TypeVar, overload

import numpy as np
import numpy.typing as npt

from dflash_core.contracts.common import SequenceKey

Item = TypeVar("Item")


class Packed(Sequence[Item]):
    """An item is made when it is looked at. Columns are made, sent and read with the same few calls for one sequence as
    for hundreds; of flat ones, those of all sequences stand one after the other:

    num_rows  │ 3       │ 1 │ 2    │     one entry per sequence
    token_ids │ a  a  a │ b │ c  c │     those of all
    """

    __slots__ = ()

    keys: Sequence[SequenceKey]

    @classmethod
    def of(cls, items: Sequence[Item]) -> Self:
        """The same items; where they are in columns already, themselves."""
        return items if isinstance(items, cls) else cls._pack(items)

    @classmethod
    @abstractmethod
    def _pack(cls, items: Sequence[Item]) -> Self: ...

    def __len__(self) -> int:
        return len(self.keys)

    @abstractmethod
    def __iter__(self) -> Iterator[Item]: ...

    @overload
    def __getitem__(self, place: int) -> Item: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[Item, ...]: ...

    def __getitem__(self, place: int | slice) -> Item | tuple[Item, ...]:
        if isinstance(place, slice):
            return tuple(self)[place]
        found = range(len(self))[place]
        return next(islice(self, found, None))


def joined(arrays: Sequence[npt.NDArray[Any]], dtype: type[np.generic]) -> npt.NDArray[Any]:
    """All of their entries, one array after the other."""
    flat = [array.ravel() for array in arrays]
    return np.concatenate([np.empty(0, dtype), *flat], dtype=dtype, casting="same_kind")
