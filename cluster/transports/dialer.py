"""Keeps one session per known peer: dials, dials again with growing pauses, and never closes what still works."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable

from dflash_core.errors import DFlashError, Unavailable

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0


def pause_s(num_failures: int) -> float:
    """Before the next try, after so many failures in a row; jittered, so that peers do not come in step."""
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * float(2 ** min(num_failures, 16))) * random.uniform(0.5, 1.0)


class Dialer:
    """`session(address)` connects, runs for as long as the connection does, and returns or raises when it is over.

    A session that got as far as working calls `worked(address)`, so that the next pause is short again.
    """

    def __init__(self, session: Callable[[str], Awaitable[None]], what: str) -> None:
        self._session = session
        self._what = what
        self._listed: frozenset[str] = frozenset()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, int] = {}

    def set_endpoints(self, addresses: Iterable[str]) -> None:
        """A peer that is no longer listed keeps its session while that lasts, and is not dialled again."""
        self._listed = frozenset(addresses)
        for address in self._listed - self._tasks.keys():
            self._tasks[address] = asyncio.create_task(self._keep(address), name=f"{self._what} {address}")

    def worked(self, address: str) -> None:
        self._failures.pop(address, None)

    async def close(self) -> None:
        self._listed = frozenset()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, address: str) -> None:
        while address in self._listed:
            try:
                await self._session(address)
                logger.info("%s %s said goodbye", self._what, address)
            except DFlashError as error:
                level = logging.INFO if isinstance(error, Unavailable) else logging.WARNING
                logger.log(level, "%s %s: %s", self._what, address, error.message)
            except Exception:
                logger.exception("%s %s", self._what, address)
            failures = self._failures[address] = self._failures.get(address, 0) + 1
            await asyncio.sleep(pause_s(failures))
        # At once, and not when the task is done: listed again in between, the address would be taken for one in use.
        del self._tasks[address]
        self._failures.pop(address, None)
