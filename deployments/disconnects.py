"""Work for an HTTP client that ends when the client is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

_T = TypeVar("_T")


class ClientDisconnected(Exception):
    """Nobody is left to answer."""


async def while_connected(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Awaits `work`, for a request whose body has been read; raises `ClientDisconnected` once the client has left.

    Then, and when the caller is cancelled, `work` is cancelled and has ended before this returns. Without this a
    server learns of a client's leaving only when it sends, which an answer in one piece does at its end.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnected
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
