"""The least time that a piece of work takes on this device: its bytes and its operations over measured rates."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.timing import copy_bytes_per_second, matrix_operations_per_second


@dataclass(frozen=True, slots=True)
class Rates:
    """What the device does at best."""

    copy_bytes_per_second: float  # bytes read and bytes written, together
    matrix_operations_per_second: float  # multiplications and additions of dense matrix products

    @classmethod
    def measure(cls, device: torch.device, dtype: torch.dtype) -> Rates:
        return cls(copy_bytes_per_second(device), matrix_operations_per_second(device, dtype))

    def __str__(self) -> str:
        return (
            f"memory is copied at {self.copy_bytes_per_second / 1e9:.0f} GB/s, read and written bytes together; "
            f"matrices are multiplied at {self.matrix_operations_per_second / 1e12:.2f} TFLOP/s"
        )


@dataclass(frozen=True, slots=True)
class Limit:
    """Two lower bounds in milliseconds. Both at once is the best that can be; one after the other, the sum."""

    bytes_ms: float
    operations_ms: float

    @property
    def larger_ms(self) -> float:
        return max(self.bytes_ms, self.operations_ms)

    @property
    def sum_ms(self) -> float:
        return self.bytes_ms + self.operations_ms

    def as_dict(self) -> dict[str, float]:
        return asdict(self) | {"larger_ms": self.larger_ms, "sum_ms": self.sum_ms}


@dataclass(frozen=True, slots=True)
class Work:
    """The fewest bytes that must be read or written (each once), and the operations that must be done."""

    num_bytes: float
    num_operations: float

    def __add__(self, other: Work) -> Work:
        return Work(self.num_bytes + other.num_bytes, self.num_operations + other.num_operations)

    def limit(self, rates: Rates) -> Limit:
        return Limit(
            self.num_bytes / rates.copy_bytes_per_second * 1e3,
            self.num_operations / rates.matrix_operations_per_second * 1e3,
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
