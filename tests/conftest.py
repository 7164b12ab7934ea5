"""What every test runs under. Set before anything imports torch, numba or ray, and inherited by child processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # else ray.init() writes a token file into the home directory
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray forks, and runs Python before it execs. Where another thread is in gRPC at that moment, gRPC's handlers crash
    # the child, and whoever forked sees a process that has started: it waits for a raylet or a dashboard in vain.
    "GRPC_ENABLE_FORK_SUPPORT": "0",
    "OMP_NUM_THREADS": "1",  # two busy cores and two threads make a forward hundreds of times slower
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",  # a test that would download fails instead
    "TRANSFORMERS_OFFLINE": "1",
    "MPLBACKEND": "agg",
}
os.environ.update(ENVIRONMENT)


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """What a test makes of the loggers, as a replica does when it starts, ends with it."""
    loggers = [logging.getLogger(name) for name in ("ray.serve", "dflash_core")]
    before = [(each, each.handlers[:], each.level, each.propagate) for each in loggers]
    yield
    for each, handlers, level, propagate in before:
        each.handlers, each.propagate = handlers, propagate
        each.setLevel(level)
