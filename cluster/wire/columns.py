"""Columns: what a round says of all its sequences, in one array per field instead of a message per sequence.

    num_tokens  │ 2 │ 0 │ 3 │        one entry per sequence
    token_ids   │ a  a │ c  c  c │   those of all sequences, one after the other

Making and reading columns costs the same few calls for one sequence as for hundreds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.wire.limits import MAX_SEQUENCES, check_at_most
from cluster.wire.pieces import check_id_lens
from dflash_core.contracts import SamplingParams, SequenceKey
from dflash_core.errors import InvalidRequest, ProtocolError
from protos import common_pb2

_INT32 = np.dtype("<i4")
_FLOAT32 = np.dtype("<f4")
# Two keys a round and sequence: what a NamedTuple has for a constructor is Python, this is not.
_make_key: Callable[[tuple[str, int]], SequenceKey] = partial(tuple.__new__, SequenceKey)


def keys_to_pb(keys: Sequence[SequenceKey]) -> common_pb2.SequenceKeys:
    return common_pb2.SequenceKeys(
        sequence_ids=[key.sequence_id for key in keys], attempts=[key.attempt for key in keys]
    )


def keys_from_pb(pb: common_pb2.SequenceKeys) -> tuple[SequenceKey, ...]:
    sequence_ids = list(pb.sequence_ids)
    check_at_most("sequences", len(sequence_ids), MAX_SEQUENCES)
    check_columns(sequence_ids, attempts=pb.attempts)
    check_id_lens(sequence_ids)
    return tuple(map(_make_key, zip(sequence_ids, pb.attempts, strict=True)))


def samplings_to_pb(samplings: Sequence[SamplingParams]) -> common_pb2.Samplings:
    return common_pb2.Samplings(
        temperatures=[sampling.temperature for sampling in samplings],
        top_ks=[sampling.top_k for sampling in samplings],
        top_ps=[sampling.top_p for sampling in samplings],
        min_ps=[sampling.min_p for sampling in samplings],
        seeds=[sampling.seed for sampling in samplings],
    )


def samplings_from_pb(pb: common_pb2.Samplings) -> tuple[SamplingParams, ...]:
    """Raises `ProtocolError` for a value outside its range: these come from a peer, not from a client."""
    check_columns(pb.temperatures, top_ks=pb.top_ks, top_ps=pb.top_ps, min_ps=pb.min_ps, seeds=pb.seeds)
    try:
        return tuple(map(SamplingParams, pb.temperatures, pb.top_ks, pb.top_ps, pb.min_ps, pb.seeds))
    except InvalidRequest as error:
        raise ProtocolError(error.message) from None


def check_columns(first: Sized, **others: Sized) -> None:
    """Raises `ProtocolError` unless every column has as many entries as the first one."""
    for name, column in others.items():
        if len(column) != len(first):
            raise ProtocolError(f"{len(first)} sequences came with {len(column)} {name}")


def check_places(what: str, places: Iterable[int], num_entries: int) -> None:
    """Raises `ProtocolError` for the place of an entry that is not there."""
    for place in places:
        if place >= num_entries:
            raise ProtocolError(f"{what} of entry {place} came with {num_entries} entries")


def joined_int32(arrays: Sequence[npt.NDArray[np.int32]]) -> bytes:
    """One after the other, little-endian."""
    # Not np.concatenate, which takes ten times as long for many small arrays.
    return b"".join([np.ascontiguousarray(array, dtype=_INT32).data for array in arrays])


def to_bytes(flat: npt.NDArray[Any]) -> bytes:
    """Of int32 or float32, little-endian."""
    return np.ascontiguousarray(flat, dtype=flat.dtype.newbyteorder("<")).tobytes()


def split_int32(data: bytes, lengths: Sequence[int], what: str) -> list[npt.NDArray[np.int32]]:
    """One array per length, in their order. They are views, and cannot be written to."""
    ends = list(accumulate(lengths, initial=0))
    flat = flat_int32(data, ends[-1], len(lengths), what)
    return [flat[begin:end] for begin, end in pairwise(ends)]


def flat_int32(data: bytes, size: int, num_sequences: int, what: str) -> npt.NDArray[np.int32]:
    """`[size]`, of all sequences together; a view, which cannot be written to."""
    return _flat(data, size, num_sequences, _INT32, what)


def flat_float32(data: bytes, size: int, num_sequences: int, what: str) -> npt.NDArray[np.float32]:
    return _flat(data, size, num_sequences, _FLOAT32, what)


def _flat(data: bytes, size: int, num_sequences: int, dtype: np.dtype[Any], what: str) -> npt.NDArray[Any]:
    """`size` is a sum of Python's integers: hostile lengths would overflow numpy's."""
    if len(data) != size * dtype.itemsize:
        raise ProtocolError(
            f"{num_sequences} sequences have {size} {what}, which take {size * dtype.itemsize} bytes, got {len(data)}"
        )
    return np.frombuffer(data, dtype=dtype).astype(dtype.newbyteorder("="), copy=False)
