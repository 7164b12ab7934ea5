"""Whether a model's thread still answers."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

from dflash_core.errors import Unavailable

# Below the health check's own timeout; Serve restarts a replica after three failures in a row.
PATIENCE_S = 8.0


async def check_thread(executor: Executor) -> None:
    """Raises `Unavailable` unless the thread takes up new work within `PATIENCE_S`.

    Beyond keepalive, which a hung step does not disturb: the process still answers pings.
    """
    answer = asyncio.get_running_loop().run_in_executor(executor, int)
    done, _ = await asyncio.wait([answer], timeout=PATIENCE_S)
    if not done:
        raise Unavailable(f"the model's thread has not answered for {PATIENCE_S} s")
