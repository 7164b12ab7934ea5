"""A reference arm that may fail without ending the benchmark: libraries change, and two caches may not fit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from benchmarks.device import free_memory

NO_MEMORY = "no memory"
_HEADROOM_BYTES = 4 << 30  # left to the other arm's activations

_Arm = TypeVar("_Arm")
_Result = TypeVar("_Result")


class Guarded(Generic[_Arm]):
    """`failure` says why the arm is not there, or no longer: after a failure its cache is worth nothing."""

    def __init__(self, device: torch.device, make: Callable[[], _Arm]) -> None:
        self.failure: str | None = None
        self._device = device
        self._arm = self._try(make)
        if self._arm is not None and not _has_headroom(device):
            self._give_up(NO_MEMORY)

    def call(self, use: Callable[[_Arm], _Result]) -> _Result | None:
        """None where the arm is not there."""
        arm = self._arm
        return None if arm is None else self._try(lambda: use(arm))

    def _try(self, action: Callable[[], _Result]) -> _Result | None:
        try:
            return action()
        except torch.OutOfMemoryError:
            reason = NO_MEMORY
        except Exception as failure:
            reason = f"failed: {type(failure).__name__}"
            sys.stderr.write(f"the reference failed: {failure!r}\n")
        self._give_up(reason)
        return None

    def _give_up(self, reason: str) -> None:
        self.failure = reason
        self._arm = None
        free_memory(self._device)


def _has_headroom(device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused >= _HEADROOM_BYTES
