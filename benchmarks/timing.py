"""Times on a GPU or a CPU, and how fast this machine copies and multiplies."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.device import synchronize

_COLD_BYTES = 1 << 28  # several times any L2 cache
_FEWEST, _MOST = 5, 200  # calls


class TooSlow(Exception):
    """One call took longer than the caller wants to repeat."""


def median_ms(
    run: Callable[[], object], device: torch.device, budget_ms: float = 200.0, longest_ms: float = float("inf")
) -> float:
    """Median time of `run` in milliseconds over as many calls as `budget_ms` gives, at least five.

    On a GPU it is the device's own time from the first kernel's start to the last one's end; each call starts with a
    cold L2 cache, as a layer finds it when the next round comes.
    Raises `TooSlow` where one call takes more than `longest_ms`.
    """
    run()
    once_ms = _wall_ms(run, device)
    if once_ms > longest_ms:
        raise TooSlow(f"one call takes {once_ms:.0f} ms")
    if device.type == "cuda":
        return _median_device_ms(run, budget_ms)
    times: list[float] = []
    while len(times) < _FEWEST or sum(times) < budget_ms:
        times.append(_wall_ms(run, device))
    return statistics.median(times)


def median_wall_ms(run: Callable[[], object], device: torch.device, num_calls: int = 20) -> float:
    """Median time of `run` in milliseconds as its caller sees it, until the device is idle again."""
    run()
    return statistics.median(_wall_ms(run, device) for _ in range(num_calls))


def captured(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """On a GPU a replay of `run` as a CUDA graph, so that what it launches follows without gaps; else `run` itself."""
    if device.type != "cuda":
        return run
    stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(2):  # compiles, and lets libraries allocate what they keep
            run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    return graph.replay


def copy_bytes_per_second(device: torch.device) -> float:
    """Bytes read and written per second by a large copy: what memory gives at best."""
    size = 1 << (30 if device.type == "cuda" else 27)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / (median_ms(lambda: target.copy_(source), device) / 1e3)


def matrix_operations_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Multiplications and additions per second: the best of some large matrix products of random numbers."""
    best = 0.0
    for size in (4096, 8192, 16384) if device.type == "cuda" else (512, 1024):
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        output = torch.empty_like(left)
        ms = median_ms(lambda a=left, b=right, c=output: torch.mm(a, b, out=c), device, budget_ms=100.0)  # type: ignore[misc]
        best = max(best, 2 * size**3 / (ms / 1e3))
    return best


def _median_device_ms(run: Callable[[], object], budget_ms: float) -> float:
    cold = torch.empty(_COLD_BYTES, dtype=torch.uint8, device="cuda")
    times = _device_times_ms(run, cold, _FEWEST)
    affordable = int(budget_ms / max(statistics.median(times), 1e-3))
    return statistics.median(times + _device_times_ms(run, cold, min(affordable, _MOST) - _FEWEST))


def _device_times_ms(run: Callable[[], object], cold: torch.Tensor, num_calls: int) -> list[float]:
    events: Any = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(num_calls)]  # type: ignore[no-untyped-call]
    for begin, end in events:
        cold.zero_()  # also keeps the device busy while the host gets ahead of it
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in events]


def _wall_ms(run: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    begin = time.perf_counter()
    run()
    synchronize(device)
    return (time.perf_counter() - begin) * 1e3
