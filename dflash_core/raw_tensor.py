"""Tensors as bytes with dtype and shape, for the wire. bf16, which NumPy lacks, passes as its bytes."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from dflash_core.contracts import RawTensor
from dflash_core.errors import ProtocolError

assert sys.byteorder == "little", "the wire's tensors are little-endian"

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.int64, torch.uint8)
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """What `RawTensor` calls it. Raises `ProtocolError` for a dtype that does not travel."""
    name = _NAMES.get(dtype)
    if name is None:
        raise ProtocolError(f"tensors of dtype {dtype} do not travel; these do: {', '.join(_DTYPES)}")
    return name


def to_raw(tensor: Tensor) -> RawTensor:
    """The tensor's bytes. A contiguous tensor on the CPU is not copied: the bytes are a view that keeps it alive."""
    name = dtype_name(tensor.dtype)
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return RawTensor(name, tuple(tensor.shape), flat.view(torch.uint8).numpy().data)


def from_raw(raw: RawTensor, device: torch.device | str = "cpu") -> Tensor:
    """The tensor in those bytes; on the CPU a view of them where they are writable (as those of `to_raw` are).

    Raises `ProtocolError` for an unknown dtype, a negative size or bytes that are too few or too many.
    """
    dtype = _DTYPES.get(raw.dtype)
    if dtype is None:
        raise ProtocolError(f"a tensor of unknown dtype {raw.dtype!r}; known are {', '.join(_DTYPES)}")
    if min(raw.shape, default=0) < 0:
        raise ProtocolError(f"a tensor of shape {list(raw.shape)}")
    count = 1
    for size in raw.shape:
        count *= size
    num_bytes = memoryview(raw.data).nbytes
    if num_bytes != count * dtype.itemsize:
        raise ProtocolError(
            f"a {raw.dtype} tensor of shape {list(raw.shape)} has {count * dtype.itemsize} bytes, got {num_bytes}"
        )
    if count == 0:
        return torch.empty(raw.shape, dtype=dtype, device=device)
    # Torch has no read-only tensors: bytes that Python holds immutable are copied, all others viewed.
    buffer = bytearray(raw.data) if memoryview(raw.data).readonly else raw.data
    return torch.frombuffer(buffer, dtype=dtype).view(raw.shape).to(device)
