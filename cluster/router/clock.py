"""The router's one clock: its event loop's, so that under a loop with virtual time it lives in that time."""

from __future__ import annotations

import asyncio


def now() -> float:
    """Seconds of the running event loop's clock, which is monotonic. Raises `RuntimeError` outside of a loop."""
    return asyncio.get_running_loop().time()
