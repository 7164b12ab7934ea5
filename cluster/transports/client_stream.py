"""A bidirectional stream from the side that dialled: typed, with writes in order and an end that is None."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio

from cluster.status import error_of_rpc, error_of_status
from cluster.transports.grpc_options import STREAM_ERRORS
from dflash_core.errors import DFlashError, Unavailable

Request = TypeVar("Request")
Response = TypeVar("Response")


class ClientStream(Generic[Request, Response]):
    """`what` names the peer in errors, which are those that its status stands for (`cluster.status`)."""

    def __init__(self, method: grpc.aio.StreamStreamMultiCallable[Request, Response], what: str) -> None:
        self.what = what
        self._call: Any = method()
        self._write_lock = asyncio.Lock()

    async def write(self, message: Request) -> None:
        """Waits while the peer takes no more."""
        async with self._write_lock, self._errors():
            await self._call.write(message)

    async def read(self) -> Response | None:
        """None once the peer has ended the stream in good order."""
        async with self._errors():
            message: Response = await self._call.read()
        if message is not grpc.aio.EOF:
            return message
        if await self._call.code() is not grpc.StatusCode.OK:
            raise await self._error(None)
        return None

    async def done_writing(self) -> None:
        async with self._write_lock, self._errors():
            await self._call.done_writing()

    def cancel(self) -> None:
        self._call.cancel()

    @asynccontextmanager
    async def _errors(self) -> AsyncIterator[None]:
        try:
            yield
        except STREAM_ERRORS as error:
            raise await self._error(error) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # grpc's word for a call or channel that was closed on this side, whoever waits for it.
            raise Unavailable(f"{self.what}: its stream was closed here") from None

    async def _error(self, error: BaseException | None) -> DFlashError:
        """By the stream's status where it has one: a write to a refused stream says only that it is closed."""
        if isinstance(error, grpc.RpcError):
            return error_of_rpc(error, self.what)
        if self._call.done():
            return error_of_status(await self._call.code(), await self._call.details(), self.what)
        return Unavailable(f"{self.what}: its stream ended: {error!r}")
