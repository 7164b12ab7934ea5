"""A target deployment whose model thread can be blocked, as a collective does whose other side is gone."""

from __future__ import annotations

import threading

from deployments.target import Target


class HangingTarget(Target):
    async def hang(self) -> None:
        self._executor.submit(threading.Event().wait)
