"""The event loop that a replica would have: Ray gives its workers uvloop's where that is installed, asyncio's else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

try:  # it comes with our dependencies; a machine that only measures kernels may lack it
    import uvloop
except ImportError:
    _new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
else:
    _new_loop = uvloop.new_event_loop

_Result = TypeVar("_Result")


def run(work: Coroutine[Any, Any, _Result]) -> _Result:
    """As `asyncio.run`."""
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        return runner.run(work)


def name() -> str:
    """For a benchmark's settings."""
    return _new_loop.__module__.partition(".")[0]
