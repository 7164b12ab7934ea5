"""Many small arrays that go to the device by one copy, to addresses that never change.

A CUDA graph is captured once and reads the same memory ever after. The host's side is pinned on a GPU, so that the copy
is queued like a kernel: the host goes on at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_ALIGNMENT = 128  # bytes: Triton compiles another kernel for pointers that are not aligned to 16
_TORCH_DTYPES = {
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
}


@dataclass(frozen=True, slots=True)
class ArraySpec:
    shape: tuple[int, ...]
    dtype: type[np.generic] = np.int32

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


class StagedArrays:
    """Named arrays, on the host as `host[name]`, on the device as `device[name]`, in the order they are given."""

    def __init__(self, specs: Mapping[str, ArraySpec], device: torch.device) -> None:
        starts = np.cumsum([0, *(-(-spec.num_bytes // _ALIGNMENT) * _ALIGNMENT for spec in specs.values())]).tolist()
        self._buffer = torch.zeros(starts[-1], dtype=torch.uint8, device=device)
        self._staging = torch.zeros(starts[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._last_start: int = starts[-2]
        self._last_row_bytes = 0
        self.host: dict[str, npt.NDArray[Any]] = {}
        self.device: dict[str, Tensor] = {}
        staged = self._staging.numpy()
        for start, (name, spec) in zip(starts, specs.items(), strict=False):
            end = start + spec.num_bytes
            self.host[name] = staged[start:end].view(spec.dtype).reshape(spec.shape)
            self.device[name] = self._buffer[start:end].view(_TORCH_DTYPES[np.dtype(spec.dtype)]).view(spec.shape)
            self._last_row_bytes = spec.num_bytes // max(1, spec.shape[0])

    def send(self, num_last_rows: int | None = None) -> None:
        """Starts the copy of all arrays, of the last one only the first rows where their number is given.

        What was sent before must have arrived: its staging memory is used again.
        """
        end = len(self._staging)
        if num_last_rows is not None:
            end = self._last_start + num_last_rows * self._last_row_bytes
        self._buffer[:end].copy_(self._staging[:end], non_blocking=True)
