"""`RankGroup`: rank 0's hold on the other ranks, from their start to their end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore  # what torch.distributed re-exports, unseen by mypy

from dflash_core.errors import DFlashError, InvalidSettings, RanksLost
from dflash_core.parallel.ranks import Ranks, Rendezvous, await_ranks, fault_key, open_store
from dflash_core.runners.devices import pick_device
from dflash_core.runners.settings import TargetSettings

_PATIENCE_S = 2.0  # a connection breaks a little before its process has ended


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """All that a rank other than 0 must know."""

    target: str
    settings: TargetSettings
    rendezvous: Rendezvous


class Workers(Protocol):
    """The ranks from 1 on, as processes of some kind."""

    def ended(self, patience_s: float) -> tuple[int, str] | None:
        """A rank that has ended and how, None while all run; waits for one to end for at most `patience_s`."""
        ...

    def stop(self) -> None:
        """Ends them, whatever they do. Idempotent."""
        ...


class Launcher(Protocol):
    """Starts `run_worker` in processes of some kind. They must end when this process does."""

    @property
    def host(self) -> str:
        """The address at which they find this process."""
        ...

    @property
    def sees_all_gpus(self) -> bool:
        """Whether a process sees the GPUs of all ranks, or its own alone."""
        ...

    def launch(self, specs: Sequence[WorkerSpec]) -> Workers: ...


class RankGroup:
    """Rank 0, and the processes of the others."""

    def __init__(self, ranks: Ranks, workers: Workers, pids: list[int], store: TCPStore, name: str) -> None:
        self.ranks = ranks
        self.pids = pids  # of the others' processes
        self._workers = workers
        self._store = store
        self._name = name

    @classmethod
    def start(cls, target: str, settings: TargetSettings, launcher: Launcher) -> RankGroup:
        """Starts the others and meets them. Raises `InvalidSettings`, `RanksLost`."""
        device = pick_device(settings.device)
        size = settings.tensor_parallel
        _check_process()
        _check_devices(device, size, launcher.sees_all_gpus)
        store = open_store(launcher.host)
        rendezvous = [
            Rendezvous(
                launcher.host,
                store.port,
                tp_rank,
                size,
                settings.collective_timeout_s,
                tp_rank if launcher.sees_all_gpus else 0,
            )
            for tp_rank in range(size)
        ]
        workers = launcher.launch([WorkerSpec(target, settings, at) for at in rendezvous[1:]])
        try:
            pids = await_ranks(store, size, lambda: _fault(workers, store, target, 0.0))
            return cls(Ranks(store, rendezvous[0], device), workers, pids, store, target)
        except BaseException:
            workers.stop()
            raise

    def fault(self) -> str | None:
        """Why the group is of no use any more, as far as it can be told without a pass."""
        return _fault(self._workers, self._store, self._name, 0.0)

    def explain(self, error: Exception) -> str:
        """Why a collective failed with `error`."""
        ended = _fault(self._workers, self._store, self._name, _PATIENCE_S)
        return ended or f"target {self._name}: its ranks are out of step: {type(error).__name__}: {error}"

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Ends the group where its start fails, with `RanksLost` where that is because of another rank."""
        try:
            yield
        except DFlashError:
            self.close()
            raise
        except Exception as error:
            ended = _fault(self._workers, self._store, self._name, _PATIENCE_S)
            self.close()
            if ended is None:
                raise
            raise RanksLost(ended) from error

    def close(self) -> None:
        """Ends the other ranks. Idempotent."""
        self._workers.stop()
        self.ranks.close()


def _fault(workers: Workers, store: TCPStore, name: str, patience_s: float) -> str | None:
    ended = workers.ended(patience_s)
    if ended is None:
        return None
    tp_rank, how = ended
    key = fault_key(tp_rank)
    reason = f": {store.get(key).decode()}" if store.check([key]) else ""
    return f"target {name} has lost rank {tp_rank}, which {how}{reason}"


def _check_process() -> None:
    if dist.is_initialized():
        raise InvalidSettings("this process holds a rank of another tensor-parallel model: it can hold one")


def _check_devices(device: torch.device, tp_size: int, sees_all_gpus: bool) -> None:
    num_gpus = torch.cuda.device_count()
    if device.type == "cpu" and torch.cuda.is_available():
        raise InvalidSettings(
            f"tensor_parallel={tp_size} on the CPU needs processes that see no GPU: set CUDA_VISIBLE_DEVICES to nothing"
        )
    if device.type == "cuda" and sees_all_gpus and num_gpus < tp_size:
        raise InvalidSettings(f"tensor_parallel={tp_size} needs as many GPUs, but torch sees {num_gpus}")
