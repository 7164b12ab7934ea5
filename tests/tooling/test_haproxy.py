"""The HAProxy that `make serve` uses notices clients that leave, with the options that Ray Serve sets."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.deployments.conftest import free_ports

HAPROXY = Path(sys.executable).parent / "dflash-haproxy"
CONFIG = """
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option abortonclose
    option splice-request
    option splice-response
listen all
    bind 127.0.0.1:{frontend}
    server only 127.0.0.1:{backend}
"""
HEAD, BODY = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n", b"{}"
NUM_CLIENTS = 24


@pytest.mark.timeout(30)
async def test_every_client_that_leaves_is_noticed(tmp_path: Path) -> None:
    frontend, backend = free_ports(2)
    config = tmp_path / "haproxy.cfg"
    config.write_text(CONFIG.format(frontend=frontend, backend=backend))
    has_begun, has_left = asyncio.Semaphore(0), asyncio.Semaphore(0)

    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(BODY)
        has_begun.release()
        with suppress(ConnectionResetError):
            await reader.read()  # until the connection ends
        has_left.release()
        writer.close()

    server = await asyncio.start_server(never_answer, "127.0.0.1", backend)
    environment = dict(os.environ) | {"RAY_SERVE_HAPROXY_BINARY_PATH": str(HAPROXY)}
    proxy = await asyncio.create_subprocess_exec(HAPROXY, "-db", "-f", config, env=environment)
    try:
        clients = []
        for _ in range(NUM_CLIENTS):
            reader, writer = await _connect(frontend)
            writer.write(HEAD)
            await asyncio.sleep(0.02)  # HAProxy only splices a body that comes by itself
            writer.write(BODY)
            clients.append((reader, writer))
        for _ in clients:
            await has_begun.acquire()
        await asyncio.sleep(0.3)
        for _, writer in clients:
            writer.close()
        for _ in clients:
            await has_left.acquire()
    finally:
        proxy.terminate()
        await proxy.wait()
        server.close()


async def _connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    while True:
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.05)
