"""Times on a GPU or a CPU, and how fast this machine copies."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def median_ms(run: Callable[[], object], device: torch.device, budget_ms: float = 200.0) -> float:
    """Median time of `run` in milliseconds, over as many calls as `budget_ms` gives, at least five.

    On a GPU each call starts with a cold L2 cache: a layer's keys have left it when the next round comes.
    """
    run()
    if device.type == "cuda":
        from triton.testing import do_bench

        return float(do_bench(run, warmup=budget_ms / 4, rep=budget_ms, return_mode="median"))
    times: list[float] = []
    while len(times) < 5 or sum(times) < budget_ms:
        begin = time.perf_counter()
        run()
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times)


def copy_bytes_per_second(device: torch.device) -> float:
    """Bytes read and written per second by a large copy: what memory gives at best."""
    size = 1 << (30 if device.type == "cuda" else 27)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / (median_ms(lambda: target.copy_(source), device) / 1e3)
