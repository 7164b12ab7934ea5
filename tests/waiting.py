"""Waiting for what another process brings about."""

from __future__ import annotations

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


def answers(url: str, timeout_s: float = 5.0) -> bool:
    """Whether somebody is there and says that all is well."""
    try:
        return httpx.get(url, timeout=timeout_s).status_code == 200
    except httpx.TransportError:
        return False
