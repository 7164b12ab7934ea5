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
from dflash_core.models.drafter import ContextProjection
from dflash_core.runners.stages import StageClock
from dflash_core.runners.target_pack import PackedRows


@dataclass(frozen=True, slots=True)
class TargetCaches:
    """What outlives a round on the device."""

    kv: KvPool
    features: FeaturePool | None  # None where no drafter is to be fed
    projection: ContextProjection | None  # likewise


@dataclass(frozen=True, slots=True)
class RowFeatures:
    """Context features that a pass brought to the host."""

    features: Tensor  # on the CPU, `[n, hidden]`
    places: npt.NDArray[np.int64] | None  # [num_rows] where a packed row's features stand; None: at its own number

    def of(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """A copy `[len(rows), hidden]` of the features of committed packed rows."""
        return self.features.index_select(0, torch.from_numpy(rows if self.places is None else self.places[rows]))


@dataclass(frozen=True, slots=True)
class PassResult:
    choices: npt.NDArray[np.int64]  # [num_choices] the tokens that the target chose; −1 where it could not
    accepted: npt.NDArray[np.bool_]  # [num_tree_rows]; such rows are committed where they have a slot
    features: RowFeatures | None  # of all committed rows; they are in the feature pages too


class TargetPass(Protocol):
    def prepare(self) -> None:
        """Does, once a first pass has run, what no later one should wait for."""
        ...

    def run(self, rows: PackedRows, clock: StageClock) -> PassResult:
        """One pass. What it writes beyond a sequence's committed tokens is never read."""
        ...
