"""`CapturedSteps`: a step of padded sizes, each captured once in a CUDA graph and replayed ever after."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Generic, TypeVar, cast

import torch
import torch._dynamo
from torch import Tensor

from dflash_core.errors import InvalidSettings, UnsupportedModel

logger = logging.getLogger(__name__)

_Size = TypeVar("_Size", bound=Hashable)
_Function = TypeVar("_Function", bound=Callable[..., object])


class CapturedSteps(Generic[_Size]):
    """Runs `launch(size)`: whatever it reads and writes lies at fixed addresses, and it waits for nothing.

    Sizes that were not captured are launched kernel by kernel.
    """

    def __init__(self, launch: Callable[[_Size], None], device: torch.device) -> None:
        self._launch = launch
        self._device = device
        self._graphs: dict[_Size, torch.cuda.CUDAGraph] = {}

    def run(self, size: _Size) -> None:
        graph = self._graphs.get(size)
        if graph is None:
            self._launch(size)
        else:
            graph.replay()

    def prepare(self, sizes: Iterable[_Size], name: str, *, with_graphs: bool) -> None:
        """Launches each size once, which compiles its kernels, and captures it `with_graphs`.

        The largest should come first, since all graphs share its memory. Raises `UnsupportedModel` where `name` does
        something that a graph cannot hold, `InvalidSettings` where the memory that is left does not do.
        """
        begin = time.perf_counter()
        pool = torch.cuda.graph_pool_handle() if with_graphs else None
        for size in sizes:
            try:
                self._launch(size)
                torch.cuda.synchronize(self._device)
                if with_graphs:
                    self._graphs[size] = self._capture(size, pool)
            except torch.OutOfMemoryError as error:
                raise InvalidSettings(
                    f"{name} has too little memory for a step of {size}: lower memory_fraction or max_rows: {error}"
                ) from error
            except RuntimeError as error:
                cause = error.__context__ or error  # an error within a capture is hidden by that of its end
                remedy = "set cuda_graphs=false to run it without graphs" if with_graphs else "it cannot be served"
                raise UnsupportedModel(f"{name} fails in a step of {size}: {cause}; {remedy}") from error
        kind = f"captured {len(self._graphs)} CUDA graphs" if with_graphs else "launched every size"
        logger.info("%s: %s in %.1f s", name, kind, time.perf_counter() - begin)

    def _capture(self, size: _Size, pool: Any) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Of this thread alone: what other threads of the process do is their own.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            self._launch(size)
        return graph


def compile_step(step: _Function) -> _Function:
    """Compiles a step whole, once for all sizes of what `mark_dynamic` has marked; other sizes are fixed.

    Raises, when it is called, what torch raises for code that cannot be compiled whole.
    """
    # Not dynamic=True, for which sizes that happen to be equal are one size, and heads are counted like rows.
    return cast(_Function, torch.compile(step, fullgraph=True))


def mark_dynamic(tensors: Iterable[Tensor]) -> None:
    """Says that the first dimension of these differs between calls; it must not be 1."""
    for tensor in tensors:
        torch._dynamo.mark_dynamic(tensor, 0)


def padded_count(count: int) -> int:
    """The least padded size that holds `count` rows: steps grow with the size, so that padding stays below a quarter
    from 32 rows on."""
    step = next((step for limit, step in ((64, 8), (128, 16), (256, 32), (512, 64)) if count <= limit), 128)
    return -(-count // step) * step


def padded_counts(largest: int) -> list[int]:
    """Every padded size up to that of `largest`, falling."""
    return sorted({padded_count(count) for count in range(1, largest + 1)}, reverse=True)
