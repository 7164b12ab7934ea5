"""Waiting for what others bring about: another process, or tasks of this one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import httpx


def wait(condition: Callable[[], bool], what: str, timeout_s: float = 240.0) -> None:
    """Asks several times a second. Raises `TimeoutError`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s} s")
        time.sleep(0.2)


def answers(url: str) -> bool:
    """Whether somebody is there and says that all is well."""
    try:
        return httpx.get(url, timeout=5.0).status_code == 200
    except httpx.TransportError:
        return False


async def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Polls, since what is waited for is the absence of something that nobody announces."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.001)
