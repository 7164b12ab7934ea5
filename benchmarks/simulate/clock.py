"""An event loop whose time is virtual: it jumps to the next timer whenever nothing is left to run.

             real   ──█──█──█──────────────►   only callbacks take time
callbacks at virtual  █        █     █         the gaps between them cost nothing
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class NothingToWaitFor(RuntimeError):
    """Every task waits for another one and no timer is set: on a real clock this would hang for ever."""


class _TimeSelector(selectors.SelectSelector):
    """Never looks at a file; being asked to wait moves the time on by just as much."""

    def __init__(self) -> None:
        super().__init__()
        self.time_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise NothingToWaitFor(f"no timer is set after {self.time_s} s")
        self.time_s += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """For coroutines, futures and timers of one thread; sockets, processes and executors never answer on it.

    Time starts at 0. Two runs of the same program take the same steps in the same order at the same times.
    """

    def __init__(self) -> None:
        self._time_selector = _TimeSelector()
        super().__init__(self._time_selector)

    def time(self) -> float:
        return self._time_selector.time_s


def run_virtually(main: Coroutine[Any, Any, Result]) -> Result:
    """Runs `main` from virtual time 0 to its end. Raises `NothingToWaitFor` where it would wait for ever."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
