"""`Packed`: what a round says of all its sequences, in columns, which read as a tuple of what it says of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TypeVar, overload

Item = TypeVar("Item", covariant=True)


class Packed(Sequence[Item]):
    """An item is made when it is looked at. Columns are made, sent and read with the same few calls for one sequence as
    for hundreds; of flat ones, those of all sequences stand one after the other:

    num_rows  │ 3       │ 1 │ 2    │     one entry per sequence
    token_ids │ a  a  a │ b │ c  c │     those of all
    """

    __slots__ = ()

    def __iter__(self) -> Iterator[Item]:
        raise NotImplementedError

    @overload
    def __getitem__(self, place: int) -> Item: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[Item, ...]: ...

    def __getitem__(self, place: int | slice) -> Item | tuple[Item, ...]:
        if isinstance(place, slice):
            return tuple(self)[place]
        found = range(len(self))[place]
        return next(islice(self, found, None))
