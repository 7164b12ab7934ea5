"""Deployments that can be made to hang: a model's thread, as in a collective without its other side; an event loop."""

from __future__ import annotations

import threading
import time

from deployments.router import Router
from deployments.target import Target


class HangingTarget(Target):
    async def hang(self) -> None:
        self._executor.submit(threading.Event().wait)


class HangingRouter(Router):
    async def hang(self) -> None:
        time.sleep(10_000)  # noqa: ASYNC251  # that is the point
