"""`Ranks`: the processes that hold one model together, and what they exchange.

| group | over | for | waits at most |
|---|---|---|---|
| default | gloo, beside it NCCL on GPUs | meeting while the model is loaded | `START_TIMEOUT_S` |
| steps | gloo | rank 0 tells the others what to run | they: as long as nobody asks anything; rank 0: as in passes |
| passes | gloo or NCCL | the sums within a pass | `collective_timeout_s` |
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore  # what torch.distributed re-exports, unseen by mypy

from dflash_core.errors import RanksLost

START_TIMEOUT_S = 1800.0  # a slow disk under one rank holds up the others
_IDLE_TIMEOUT = timedelta(days=3650)  # whether rank 0 is still there is told by its connection, not by time
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where a rank finds the others, and its place among them."""

    host: str
    port: int
    tp_rank: int
    tp_size: int
    collective_timeout_s: float
    device_index: int  # of its GPU among those that its process sees


class Ranks:
    """One rank's end. Collectives must be called by all ranks in the same order; they raise `RuntimeError` where a
    rank is gone or late."""

    def __init__(self, store: TCPStore, rendezvous: Rendezvous, device: torch.device) -> None:
        """Meets the others; the store is rank 0's. A process can be one rank of one model."""
        self.tp_rank = rendezvous.tp_rank
        self.tp_size = rendezvous.tp_size
        self.device_index = rendezvous.device_index
        self._timeout = timedelta(seconds=rendezvous.collective_timeout_s)
        self._store = store  # ends with the last reference to it
        is_gpu = device.type == "cuda"
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if is_gpu else "gloo",
            store=store,
            rank=self.tp_rank,
            world_size=self.tp_size,
            timeout=timedelta(seconds=START_TIMEOUT_S),
        )
        self.passes: dist.ProcessGroup = _group(self._timeout, None)
        self._steps = _group(_IDLE_TIMEOUT, "gloo")

    @property
    def leads(self) -> bool:
        return self.tp_rank == 0

    def meet(self) -> None:
        """Waits for all ranks, while models are loaded."""
        dist.all_reduce(torch.zeros(1))

    def least(self, value: int) -> int:
        """The least of the values that the ranks give."""
        shared = torch.tensor([value])
        dist.all_reduce(shared, dist.ReduceOp.MIN)
        return int(shared)

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Everybody's `data`, which have one length, in the order of ranks."""
        own = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        gathered = [torch.empty_like(own) for _ in range(self.tp_size)]
        dist.all_gather(gathered, own)
        return [tensor.numpy().tobytes() for tensor in gathered]

    def broadcast_(self, message: Tensor) -> None:
        """Rank 0 sends `message` (on the CPU) to the others, who pass one of the same form to be filled."""
        sending = dist.broadcast(message, 0, group=self._steps, async_op=True)
        assert sending is not None
        sending.wait(self._timeout if self.leads else _IDLE_TIMEOUT)

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        dist.all_reduce(tensor, group=self.passes)
        return tensor

    def largest_(self, tensor: Tensor) -> Tensor:
        """The greatest over all ranks, in place."""
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.passes)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """Everybody's `tensor [rows, n]` side by side, `[rows, tp_size · n]`."""
        gathered = [torch.empty_like(tensor) for _ in range(self.tp_size)]
        dist.all_gather(gathered, tensor.contiguous(), group=self.passes)
        return torch.cat(gathered, dim=1)

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


def open_store(host: str) -> TCPStore:
    """Rank 0's store, on a free port."""
    return TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=START_TIMEOUT_S))


def join_store(rendezvous: Rendezvous) -> TCPStore:
    """Another rank's end of the store; tells rank 0 that it is there, and its process id."""
    store = TCPStore(rendezvous.host, rendezvous.port, is_master=False, timeout=timedelta(seconds=START_TIMEOUT_S))
    store.set(_arrival(rendezvous.tp_rank), str(os.getpid()))
    return store


def await_ranks(store: TCPStore, tp_size: int, fault: Callable[[], str | None]) -> list[int]:
    """Waits until all others have joined the store; returns their process ids. Raises `RanksLost` with `fault()`,
    should one have ended before."""
    deadline = time.monotonic() + START_TIMEOUT_S
    arrivals = [_arrival(tp_rank) for tp_rank in range(1, tp_size)]
    while not store.check(arrivals):
        if (reason := fault()) is not None:
            raise RanksLost(reason)
        if time.monotonic() > deadline:
            raise RanksLost(f"not all of {tp_size} ranks have started within {START_TIMEOUT_S:g} s")
        time.sleep(_POLL_S)
    return [int(store.get(arrival)) for arrival in arrivals]


@contextmanager
def local_rank(ranks: Ranks) -> Iterator[None]:
    """Says which GPU is this rank's in the way that `transformers` reads it."""
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = str(ranks.device_index)
    try:
        yield
    finally:
        if before is None:
            del os.environ["LOCAL_RANK"]
        else:
            os.environ["LOCAL_RANK"] = before


def _group(timeout: timedelta, backend: str | None) -> dist.ProcessGroup:
    group = dist.new_group(timeout=timeout, backend=backend)
    assert isinstance(group, dist.ProcessGroup), "every rank is part of every group"
    return group


def fault_key(tp_rank: int) -> str:
    """Under which a rank says in the store why it ends."""
    return f"fault-{tp_rank}"


def _arrival(tp_rank: int) -> str:
    return f"arrived-{tp_rank}"
