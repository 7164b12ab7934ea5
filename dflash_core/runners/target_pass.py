"""What one pass over a round's packed rows does, and the caches it works on.

A pass is forward → choose → walk → commit → features. There are two: `HostPass` decides between these steps on the
host, `DevicePass` leaves everything to the device and learns the result by one copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dflash_core.cache.pools import FeaturePool, KvPool
from dflash_core.contracts import RawTensor
from dflash_core.models.drafter import ContextProjection
from dflash_core.raw_tensor import dtype_name
from dflash_core.runners.stages import StageClock
from dflash_core.runners.target_pack import PackedRows


@dataclass(frozen=True, slots=True)
class TargetCaches:
    """What outlives a round on the device."""

    kv: KvPool
    features: FeaturePool | None  # None where no drafter is to be fed
    projection: ContextProjection | None  # likewise


class RowFeatures:
    """Context features that a pass brought to the host, as the bytes that travel."""

    def __init__(self, features: Tensor, places: npt.NDArray[np.int64] | None = None) -> None:
        """`features`: on the CPU, contiguous, `[n, hidden]`, read until the next pass. `places [num_rows]`: where a
        packed row's features stand; None: at its own number."""
        self._dtype, self._hidden_size = dtype_name(features.dtype), features.shape[1]
        self._bytes = features.view(torch.uint8).numpy()  # [n, hidden · itemsize]
        self._places = places

    def of(self, rows: npt.NDArray[np.int64]) -> RawTensor:
        """A copy `[len(rows), hidden]` of the features of committed packed rows."""
        copied = self._bytes[rows if self._places is None else self._places[rows]]
        return RawTensor(self._dtype, (len(rows), self._hidden_size), copied.reshape(-1).data)


@dataclass(frozen=True, slots=True)
class PassResult:
    choices: npt.NDArray[np.int64]  # [num_choices] the tokens that the target chose; −1 where it could not
    accepted: npt.NDArray[np.bool_]  # [num_tree_rows]; such rows are committed where they have a slot
    features: RowFeatures | None  # of all committed rows; they are in the feature pages too


class TargetPass(Protocol):
    @property
    def row_sizes(self) -> tuple[int, ...]:
        """Rising; rows are padded to the next of them. Empty: they are not."""
        ...

    def prepare(self) -> None:
        """Does, once a first pass has run, what no later one should wait for."""
        ...

    def run(self, rows: PackedRows, clock: StageClock) -> PassResult:
        """One pass. What it writes beyond a sequence's committed tokens is never read."""
        ...
