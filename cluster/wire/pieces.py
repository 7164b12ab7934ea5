"""What several messages share: keys, int32 arrays, sampling parameters, tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from cluster.wire.limits import MAX_TOKENS, check_at_most
from dflash_core.contracts import RawTensor, SamplingParams, SequenceKey, TokenIds
from dflash_core.errors import InvalidRequest, ProtocolError
from protos import common_pb2

MAX_ID_CHARS = 320  # of a sequence id on internal streams: the client's 256 and what the router adds
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def key_to_pb(key: SequenceKey) -> common_pb2.SequenceKey:
    return common_pb2.SequenceKey(sequence_id=key.sequence_id, attempt=key.attempt)


def key_from_pb(pb: common_pb2.SequenceKey) -> SequenceKey:
    check_id_lens([pb.sequence_id])
    return SequenceKey(pb.sequence_id, pb.attempt)


def check_id_lens(sequence_ids: Iterable[str]) -> None:
    """Raises `ProtocolError` for an id that is empty, or longer than any that this project makes."""
    for num_chars in set(map(len, sequence_ids)):
        if not 0 < num_chars <= MAX_ID_CHARS:
            raise ProtocolError(f"a sequence id must have 1 to {MAX_ID_CHARS} characters, got {num_chars}")


def int32_to_pb(values: npt.NDArray[np.int32]) -> common_pb2.Int32Array:
    return common_pb2.Int32Array(data=np.ascontiguousarray(values, dtype="<i4").tobytes())


def token_ids_from_pb(pb: common_pb2.Int32Array) -> TokenIds:
    """Those of one sequence. Raises `ProtocolError` for more than any can have."""
    check_at_most("tokens of a sequence", len(pb.data) // 4, MAX_TOKENS)
    if len(pb.data) % 4:
        raise ProtocolError(f"an int32 array has a multiple of 4 bytes, got {len(pb.data)}")
    return np.frombuffer(pb.data, dtype="<i4").astype(np.int32, copy=False)


def sampling_to_pb(sampling: SamplingParams) -> common_pb2.Sampling:
    return common_pb2.Sampling(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        seed=sampling.seed,
    )


def sampling_from_pb(pb: common_pb2.Sampling) -> SamplingParams:
    """Raises `InvalidRequest` for a value outside its range."""
    return SamplingParams(temperature=pb.temperature, top_k=pb.top_k, top_p=pb.top_p, min_p=pb.min_p, seed=pb.seed)


def times_to_pb(times_us: Iterable[tuple[int, int]]) -> list[common_pb2.MeasuredTime]:
    return [common_pb2.MeasuredTime(size=size, time_us=time_us) for size, time_us in times_us]


def times_from_pb(pbs: Iterable[common_pb2.MeasuredTime]) -> tuple[tuple[int, int], ...]:
    """Raises `ProtocolError` unless sizes rise from 1 on."""
    times = tuple((pb.size, pb.time_us) for pb in pbs)
    rising_from_pb("sizes of measured times", [size for size, _ in times])
    return times


def rising_from_pb(what: str, sizes: Sequence[int]) -> tuple[int, ...]:
    """Raises `ProtocolError` unless they rise from 1 on."""
    if any(size <= before for before, size in zip((0, *sizes), sizes, strict=False)):
        raise ProtocolError(f"{what} must be rising and positive, got {list(sizes)}")
    return tuple(sizes)


def tensor_to_pb(raw: RawTensor) -> common_pb2.Tensor:
    return common_pb2.Tensor(dtype=raw.dtype, shape=raw.shape, data=bytes(raw.data))


def tensor_from_pb(pb: common_pb2.Tensor) -> RawTensor:
    item_bytes = _ITEM_BYTES.get(pb.dtype)
    if item_bytes is None:
        raise ProtocolError(f"a tensor's dtype must be one of {', '.join(_ITEM_BYTES)}, got {pb.dtype!r}")
    shape = tuple(pb.shape)
    num_bytes = item_bytes
    for size in shape:  # Python's integers: four 32-bit sizes overflow numpy's
        num_bytes *= size
    if num_bytes != len(pb.data):
        raise ProtocolError(f"a {pb.dtype} tensor of shape {shape} has {num_bytes} bytes, got {len(pb.data)}")
    return RawTensor(pb.dtype, shape, pb.data)


def internal_sampling_from_pb(pb: common_pb2.Sampling) -> SamplingParams:
    """The same on streams where a wrong value is a broken peer, not a wrong request: raises `ProtocolError`."""
    try:
        return sampling_from_pb(pb)
    except InvalidRequest as error:
        raise ProtocolError(error.message) from None
