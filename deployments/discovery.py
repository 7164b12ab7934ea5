"""How replicas find each other: the endpoints of a pool, read from Ray Serve about once a second, and own servers.

Discovery only ever adds knowledge. A replica that is missing from a listing keeps its streams: whether a peer is gone
is decided by the stream to it (ARCHITECTURE section 4, "Who finds whom").
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

PERIOD_S = 1.0
TIMEOUT_S = 5.0

logger = logging.getLogger(__name__)


async def watch_endpoints(pool: DeploymentHandle, on_listing: Callable[[list[str]], None]) -> None:
    """Calls `on_listing` with the endpoints of the pool's running replicas, again and again, until cancelled."""
    async for endpoints in listings(pool):
        on_listing(endpoints)


async def listings(pool: DeploymentHandle) -> AsyncIterator[list[str]]:
    """The endpoints of the pool's running replicas, about once a second, without an end.

    After a replica's death one listing fails, and an empty pool has none: both are passed over, the next one tells.
    """
    while True:
        try:
            endpoints = await asyncio.wait_for(pool.broadcast("endpoint").results_async(), TIMEOUT_S)
        except (RayError, RayServeException, TimeoutError) as error:
            logger.debug("no listing of %s: %r", pool.deployment_name, error)
        else:
            yield [endpoint for endpoint in endpoints if endpoint]
        await asyncio.sleep(PERIOD_S)
