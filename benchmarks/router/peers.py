"""The other process: a target, a drafter and a gateway around the router that is measured, over real gRPC."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from benchmarks import event_loop
from benchmarks.router.instant import Ignored, InstantDrafter, InstantTarget, Load
from cluster.transports.drafter_service import DrafterService
from cluster.transports.grpc_options import open_channel, start_server
from cluster.transports.router_client import RouterClient
from cluster.transports.target_agent import TargetAgent
from dflash_core.errors import DFlashError


class Peers:
    """The process as the router's side sees it. Every method waits for it without blocking the event loop."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def drafter_address(self) -> str:
        address: str = await asyncio.to_thread(self._connection.recv)
        return address

    async def decode(self, router_address: str) -> None:
        """Lets target and gateway dial the router: the sequences start."""
        await asyncio.to_thread(self._connection.send, router_address)

    async def stop(self) -> None:
        await asyncio.to_thread(self._connection.send, None)
        await asyncio.to_thread(self._connection.recv)


@contextmanager
def started(load: Load) -> Iterator[Peers]:
    """The process lives within the block."""
    context = multiprocessing.get_context("spawn")  # a fork would share grpc's threads
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(theirs, load), daemon=True)
    process.start()
    try:
        yield Peers(ours)
    finally:
        process.join(timeout=5.0)
        if process.exitcode is None:
            process.terminate()
            process.join()
        ours.close()


def _main(connection: Connection, load: Load) -> None:
    event_loop.run(_serve(connection, load))


async def _serve(connection: Connection, load: Load) -> None:
    service = DrafterService(InstantDrafter())
    server = await start_server(service.register)
    connection.send(server.address)
    router_address: str = await asyncio.to_thread(connection.recv)
    agent = TargetAgent(InstantTarget(load), lambda: [router_address])
    agent.start()
    gateway = asyncio.create_task(_gateway(router_address, load))
    await asyncio.to_thread(connection.recv)
    gateway.cancel()
    await asyncio.gather(gateway, return_exceptions=True)
    await agent.drain()
    await server.stop()
    await service.close()
    connection.send(None)


async def _gateway(router_address: str, load: Load) -> None:
    async with open_channel(router_address) as channel:
        client = RouterClient(router_address, channel)
        stream = asyncio.create_task(client.run())
        try:
            while not client.is_ready:  # its target dials at the same time
                await asyncio.sleep(0.01)
            for request in load.requests():
                client.submit(request, Ignored())
            await stream
        except DFlashError as error:
            raise RuntimeError(f"the gateway lost its router: {error}") from error
        finally:
            stream.cancel()
