"""Ranks that are threads of one process: what they exchange lies in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

_Result = TypeVar("_Result")


class _Table:
    def __init__(self, tp_size: int) -> None:
        self.given: list[Tensor] = [torch.empty(0)] * tp_size
        self.barrier = threading.Barrier(tp_size, timeout=60)


class InMemoryRanks:
    """Implements `dflash_core.sampling.sharded.Exchange`."""

    def __init__(self, table: _Table, tp_rank: int) -> None:
        self._table = table
        self.tp_rank = tp_rank

    def sum_(self, tensor: Tensor) -> Tensor:
        return tensor.copy_(torch.stack(self._all(tensor)).sum(0))

    def largest_(self, tensor: Tensor) -> Tensor:
        return tensor.copy_(torch.stack(self._all(tensor)).amax(0))

    def gather(self, tensor: Tensor) -> Tensor:
        return torch.cat(self._all(tensor), dim=1)

    def _all(self, tensor: Tensor) -> list[Tensor]:
        self._table.given[self.tp_rank] = tensor.clone()
        self._table.barrier.wait()
        everybody = list(self._table.given)
        self._table.barrier.wait()
        return everybody


def run_ranks(tp_size: int, body: Callable[[InMemoryRanks], _Result]) -> list[_Result]:
    """What `body` returns on each rank."""
    table = _Table(tp_size)

    def run(tp_rank: int) -> _Result:
        try:
            return body(InMemoryRanks(table, tp_rank))
        except BaseException:
            table.barrier.abort()  # the others would wait for it
            raise

    with ThreadPoolExecutor(tp_size) as threads:
        return list(threads.map(run, range(tp_size)))
