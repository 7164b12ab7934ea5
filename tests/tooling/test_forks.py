"""What the tests start runs, whatever gRPC is at in their own process."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc

NUM_CALLERS, NUM_CHILDREN = 4, 60


async def _call_until(ended: asyncio.Event) -> None:
    async def echo(request: bytes, _: object) -> bytes:
        return request

    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler("echo", {"Echo": grpc.unary_unary_rpc_method_handler(echo)})
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    async def call() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            echoed = channel.unary_unary("/echo/Echo")
            while not ended.is_set():
                await echoed(b"?")

    await asyncio.gather(*(call() for _ in range(NUM_CALLERS)))
    await server.stop(None)


async def _fork_beside_grpc() -> list[int]:
    """Exit codes of children that are started as Ray starts its processes: with a function that runs between fork and
    exec. To die there is no error."""
    ended = asyncio.Event()

    def fork() -> list[int]:
        block = partial(signal.pthread_sigmask, signal.SIG_BLOCK, {signal.SIGINT})
        command = [sys.executable, "-S", "-c", ""]
        return [subprocess.run(command, preexec_fn=block, check=False).returncode for _ in range(NUM_CHILDREN)]

    with ThreadPoolExecutor(1) as threads:
        forking = asyncio.get_running_loop().run_in_executor(threads, fork)
        forking.add_done_callback(lambda _: ended.set())
        await _call_until(ended)
        return await forking


def test_children_start_while_other_threads_are_in_grpc() -> None:
    """In a process of its own, as the tests' environment makes it: whatever else has run here may have handlers too."""
    found = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True, check=False, timeout=120)
    assert found.stdout.split() == ["0"] * NUM_CHILDREN, found.stderr


if __name__ == "__main__":
    print(*asyncio.run(_fork_beside_grpc()))
