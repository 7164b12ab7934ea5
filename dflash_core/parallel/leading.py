"""The two ends of a pass over ranks: rank 0 leads, the others follow. All run the same rows by the same code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dflash_core.errors import DFlashError, RanksLost
from dflash_core.parallel.group import RankGroup
from dflash_core.parallel.ranks import Ranks
from dflash_core.parallel.steps import hear, tell_prepare, tell_rows
from dflash_core.runners.stages import StageClock
from dflash_core.runners.target_pack import PackedRows
from dflash_core.runners.target_pass import PassResult, TargetPass


class LeadingPass:
    """Implements `TargetPass` on rank 0. Raises `RanksLost` where a pass did not end well, and ever after: another rank
    may be a step behind, and would take part in a pass that is not this one."""

    def __init__(self, own: TargetPass, group: RankGroup) -> None:
        self._own = own
        self._group = group
        self._lost: str | None = None

    @property
    def row_sizes(self) -> tuple[int, ...]:
        return self._own.row_sizes

    def prepare(self) -> None:
        with self._together():
            tell_prepare(self._group.ranks)
            self._own.prepare()

    def run(self, rows: PackedRows, clock: StageClock) -> PassResult:
        with self._together():
            tell_rows(self._group.ranks, rows)
            clock.lap("broadcast")
            return self._own.run(rows, clock)

    @contextmanager
    def _together(self) -> Iterator[None]:
        if self._lost is not None:
            raise RanksLost(self._lost)
        try:
            yield
        except Exception as error:
            self._lost = self._group.explain(error)
            if isinstance(error, DFlashError | torch.AcceleratorError):
                raise  # it says more
            raise RanksLost(self._lost) from error


def follow(own: TargetPass, ranks: Ranks, kv_block_size: int, device: torch.device) -> None:
    """Runs what rank 0 tells, for ever. Raises `RuntimeError` once it is gone."""
    with torch.inference_mode():
        while True:
            rows = hear(ranks, kv_block_size, device)
            if rows is None:
                own.prepare()
            else:
                own.run(rows, StageClock())
