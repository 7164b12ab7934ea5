"""A TCP proxy that fails on command."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass, field
from enum import Enum

_CHUNK_BYTES = 1 << 16


class Fault(Enum):
    NONE = "none"
    DELAY = "delay"  # every chunk arrives `TcpProxy.delay_s` later, in order
    HALF_OPEN = "half-open"  # accepts and reads, and forwards nothing ever again of what comes meanwhile
    FROZEN = "frozen"  # accepts by the kernel alone, and reads nothing; goes on where it stopped
    REFUSED = "refused"  # connections are reset as soon as they come


@dataclass(eq=False)
class _Connection:
    """Both directions of one connection through the proxy."""

    writers: list[asyncio.StreamWriter]
    is_deaf: bool = False  # bytes of it are lost: nothing may be forwarded any more
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def reset(self) -> None:
        """With RST, as by a crashed kernel or a firewall, not with a FIN."""
        for task in self.tasks:
            task.cancel()
        for writer in self.writers:
            raw = writer.get_extra_info("socket")
            if raw is not None and raw.fileno() >= 0:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class TcpProxy:
    """Forwards connections to `upstream` ("host:port"). All of its connections have the same fault."""

    def __init__(self, upstream: str, delay_s: float = 0.05) -> None:
        self._host, _, port = upstream.rpartition(":")
        self._port = int(port)
        self.delay_s = delay_s
        self.address = ""
        self.num_connections = 0  # that were ever accepted
        self._fault = Fault.NONE
        self._changed = asyncio.Event()
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"

    def set_fault(self, fault: Fault) -> None:
        self._fault = fault
        self._changed.set()
        self._changed = asyncio.Event()
        if fault is Fault.REFUSED:
            self.reset_all()

    def reset_all(self) -> None:
        """Once; whoever dials again is served."""
        for connection in list(self._connections):
            connection.reset()

    def abort(self) -> None:
        """For good."""
        if self._server is not None:
            self._server.close()
        self.reset_all()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        connection = _Connection([writer])
        if self._fault is Fault.REFUSED:
            connection.reset()
            return
        self._connections.add(connection)
        try:
            try:
                up_reader, up_writer = await asyncio.open_connection(self._host, self._port)
            except OSError:
                connection.reset()
                return
            connection.writers.append(up_writer)
            connection.tasks = [
                asyncio.create_task(self._forward(connection, reader, up_writer)),
                asyncio.create_task(self._forward(connection, up_reader, writer)),
            ]
            await asyncio.wait(connection.tasks, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0)
        finally:
            self._connections.discard(connection)
            for task in connection.tasks:
                task.cancel()
            await asyncio.gather(*connection.tasks, return_exceptions=True)
            for each in connection.writers:
                each.close()

    async def _forward(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Chunks travel through a queue, so that a delay costs no throughput."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        sender = asyncio.create_task(self._send(connection, queue, writer))
        loop = asyncio.get_running_loop()
        try:
            while data := await reader.read(_CHUNK_BYTES):
                while self._fault is Fault.FROZEN:
                    await self._changed.wait()
                if self._fault is Fault.HALF_OPEN:
                    connection.is_deaf = True
                if connection.is_deaf:
                    continue
                delay = self.delay_s if self._fault is Fault.DELAY else 0.0
                queue.put_nowait((loop.time() + delay, data))
            queue.put_nowait((loop.time(), b""))
            await sender
        except ConnectionError:
            pass
        finally:
            sender.cancel()

    async def _send(
        self, connection: _Connection, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await queue.get()
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            if not data or connection.is_deaf:
                return
            try:
                writer.write(data)
                await writer.drain()
            except ConnectionError:
                return
