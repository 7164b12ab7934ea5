"""One timed round of one arm."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import torch

from benchmarks.device import synchronize


@dataclass(frozen=True, slots=True)
class Timed:
    ms: float
    num_accepted: int = 0  # draft tokens, all sequences together
    context: int = 0  # tokens of a sequence before the round
    stage_us: Mapping[str, int] = field(default_factory=dict)


class Stopwatch:
    """Milliseconds of a `with` block, between two moments at which the device is idle."""

    ms: float

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __enter__(self) -> Self:
        synchronize(self._device)
        self._begin = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        synchronize(self._device)
        self.ms = (time.perf_counter() - self._begin) * 1e3
