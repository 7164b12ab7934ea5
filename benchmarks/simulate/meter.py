"""Processor time of the router alone: that of the thread, less what is spent in the simulated parts around it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Meter:
    """Everything that runs on the event loop counts as the router's, the loop itself too, but for what is `outside`."""

    def __init__(self) -> None:
        self._outside_ns = 0
        self._begin_ns = time.thread_time_ns()

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Around work of a simulated part, without an await in it; may not be nested."""
        begin = time.thread_time_ns()
        try:
            yield
        finally:
            self._outside_ns += time.thread_time_ns() - begin

    def reset(self) -> None:
        self._outside_ns = 0
        self._begin_ns = time.thread_time_ns()

    @property
    def router_s(self) -> float:
        """Since the last reset."""
        return (time.thread_time_ns() - self._begin_ns - self._outside_ns) / 1e9
