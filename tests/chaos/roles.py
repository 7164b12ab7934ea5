"""One role of the cluster in a process of its own, over real sockets and without Ray.

A supervisor starts it, tells it whom the others are (in place of Ray Serve's listings), and asks what it holds. The
messages are JSON, one a line, over a Unix socket; when that socket ends, so does the process.

    → {"listing": {"routers": [...], "drafters": [...], "routes": {...}}}
    → {"ask": "state", "number": 7}          ← {"number": 7, "answer": {...}}
    ← {"hello": "target-1", "address": "", "pid": 4711}

A new kind of victim is one class here, in `ROLES`.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import json
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import psutil

from cluster.router import Router, RouterSettings
from cluster.transports import grpc_options
from cluster.transports.context_sender import GrpcContextSink
from cluster.transports.drafter_service import DrafterService
from cluster.transports.grpc_drafter import DrafterDialer
from cluster.transports.grpc_options import start_server
from cluster.transports.router_service import RouterService
from cluster.transports.target_agent import TargetAgent
from dflash_core.contracts import ContextChunk
from dflash_core.errors import DFlashError
from dflash_core.runners.drafter import DrafterRunner
from dflash_core.runners.settings import DrafterSettings, TargetSettings
from dflash_core.runners.target import TargetRunner

HEALTH_PERIOD_S = 0.1
UNHEALTHY_EXIT = 70


class Role(Protocol):
    address: str  # where others dial it; "" where nobody does

    async def start(self) -> None: ...

    def take_listing(self, listing: dict[str, Any]) -> None: ...

    def state(self) -> dict[str, Any]:
        """Numbers that are the same before and after any load, and the ids of the sequences held."""
        ...

    def check_health(self) -> None:
        """Raises for what only a new process cures."""
        ...

    def hang(self) -> None:
        """Blocks the thread that does the work, for ever."""
        ...

    async def drain(self) -> None: ...


class RouterRole:
    def __init__(self, options: dict[str, Any]) -> None:
        self._router = Router(RouterSettings(**options["router"]))
        share = options["max_targets"]
        self._service = RouterService(self._router, max_targets=lambda: share)
        self._dialer = DrafterDialer(self._router)
        self.address = ""

    async def start(self) -> None:
        self._running = await start_server(self._service.register)  # kept: the server lives as long as its object
        self.address = self._running.address

    def take_listing(self, listing: dict[str, Any]) -> None:
        self._dialer.set_endpoints(listing["drafters"])

    def state(self) -> dict[str, Any]:
        return {
            "held": [sequence_id for _, sequence_id in self._router._sequences],
            "num_active": self._router.num_active,
            "num_waiting": self._router.num_waiting,
            "num_running": self._router.num_running,
            "num_targets": self._router.num_targets,
            "num_drafters": self._router.num_drafters,
        }

    def check_health(self) -> None: ...

    def hang(self) -> None:
        threading.Event().wait()

    async def drain(self) -> None:
        await self._service.drain(60.0)


class DrafterRole:
    def __init__(self, options: dict[str, Any]) -> None:
        settings = DrafterSettings(**options["drafter_settings"])
        self._runner = DrafterRunner.load(options["drafter"], options["target"], settings)
        self._service = DrafterService(self._runner)
        self.address = ""

    async def start(self) -> None:
        self._running = await start_server(self._service.register)  # kept: the server lives as long as its object
        self.address = self._running.address

    def take_listing(self, listing: dict[str, Any]) -> None: ...

    def state(self) -> dict[str, Any]:
        return {
            "held": [_request_id(key.sequence_id) for key in self._service._held._lengths],
            "num_sequences": self._runner.num_sequences,
            "num_contexts": self._service.num_sequences,
            "free_blocks": self._runner.free_blocks,
            "num_drafts": self._service.num_drafts,
        }

    def check_health(self) -> None:
        self._service.check_health()

    def hang(self) -> None:
        self._service._executor.submit(threading.Event().wait)

    async def drain(self) -> None: ...


class _RoutedSink(GrpcContextSink):
    """Dials drafters by the addresses that this process has for them: a proxy may stand in between."""

    def __init__(self) -> None:
        super().__init__()
        self.routes: dict[str, str] = {}

    def send(self, drafter_address: str, chunks: list[ContextChunk]) -> None:
        super().send(self.routes.get(drafter_address, drafter_address), chunks)


class _HangingRunner(TargetRunner):
    """A target whose step blocks once it is told to, as in a collective whose other side is gone."""

    hangs = False

    def run_round(self, request: Any) -> Any:
        if self.hangs:
            threading.Event().wait()
        return super().run_round(request)


class TargetRole:
    address = ""

    def __init__(self, options: dict[str, Any]) -> None:
        settings = TargetSettings(**options["target_settings"])
        self._runner = _HangingRunner.load(options["target"], options["drafter"], settings)
        self._sink = _RoutedSink()
        self._routers: list[str] = []
        self._agent = TargetAgent(self._runner, lambda: self._routers, context_sink=self._sink)

    async def start(self) -> None:
        self._agent.start()

    def take_listing(self, listing: dict[str, Any]) -> None:
        self._routers = listing["routers"]
        self._sink.routes = listing["routes"]

    def state(self) -> dict[str, Any]:
        return {
            "held": [_request_id(sequence_id) for sequence_id in list(self._runner._sequences._by_id)],
            "num_sequences": self._runner.num_sequences,
            "free_blocks": self._runner.free_blocks,
            "epoch": self._agent.epoch,
            "rank_pids": self._runner.rank_pids,
            "num_rounds": self._agent.num_rounds,
        }

    def check_health(self) -> None:
        self._agent.check_health()
        self._runner.check_ranks()

    def hang(self) -> None:
        self._runner.hangs = True

    async def drain(self) -> None:
        await self._agent.drain()


ROLES: dict[str, type[Role]] = {"router": RouterRole, "drafter": DrafterRole, "target": TargetRole}


def _request_id(sequence_id: str) -> str:
    """Of the request that a router gave this name to (`Sequence.of`)."""
    return sequence_id.rsplit(".", 2)[0]


@contextmanager
def short_keepalive(time_ms: int, timeout_ms: int) -> Iterator[None]:
    """Of all channels and servers that this process opens meanwhile: so that a test need not wait for the defaults.

    All options that make up keepalive keep their proportions (`cluster/transports/grpc_options.py`).
    """
    shorter = {
        "grpc.keepalive_time_ms": time_ms,
        "grpc.keepalive_timeout_ms": timeout_ms,
        "grpc.http2.ping_timeout_ms": timeout_ms,
        "grpc.http2.min_ping_interval_without_data_ms": time_ms // 2,
        "grpc.http2.min_recv_ping_interval_without_data_ms": time_ms // 2,
        "grpc.min_reconnect_backoff_ms": time_ms,
    }
    names = ("CHANNEL_OPTIONS", "SERVER_OPTIONS")
    before = {name: getattr(grpc_options, name) for name in names}
    try:
        for name in names:
            setattr(grpc_options, name, tuple((key, shorter.get(key, value)) for key, value in before[name]))
        yield
    finally:
        for name in names:
            setattr(grpc_options, name, before[name])


def main(role: str, name: str, folder: str, options: dict[str, Any]) -> None:
    """What the child process runs. Its log is `folder`/`name`.log."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's
    log = open(Path(folder) / f"{name}.log", "a", buffering=1)  # noqa: SIM115 - as long as the process
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    faulthandler.register(signal.SIGUSR1, file=log)
    logging.basicConfig(stream=log, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with short_keepalive(*options["keepalive_ms"]) if options["keepalive_ms"] else nullcontext():
        asyncio.run(_serve(role, name, Path(folder) / "supervisor.sock", options))


async def _serve(role_name: str, name: str, socket: Path, options: dict[str, Any]) -> None:
    reader, writer = await asyncio.open_unix_connection(socket)
    role = ROLES[role_name](options)
    await role.start()
    _say(writer, {"hello": name, "address": role.address, "pid": os.getpid()})
    watch = asyncio.create_task(_watch_health(role))
    while line := await reader.readline():
        message = json.loads(line)
        if "listing" in message:
            role.take_listing(message["listing"])
        else:
            _say(writer, {"number": message["number"], "answer": await _answer(role, message["ask"])})
    watch.cancel()
    os._exit(0)  # the supervisor is gone: nobody waits for threads


async def _answer(role: Role, question: str) -> dict[str, Any]:
    match question:
        case "state":
            return role.state()
        case "memory":
            gc.collect()
            process = psutil.Process()
            memory = process.memory_full_info()
            return {"uss": memory.uss, "rss": memory.rss, "fds": process.num_fds(), "tasks": len(asyncio.all_tasks())}
        case "hang":
            asyncio.get_running_loop().call_soon(role.hang)
            return {}
        case "drain":
            await role.drain()
            return {}
        case _:
            raise ValueError(f"unknown question {question!r}")


async def _watch_health(role: Role) -> None:
    """Does to this process what Ray Serve does to a replica: asks how it is, and kills it where it is not well."""
    while True:
        await asyncio.sleep(HEALTH_PERIOD_S)
        try:
            role.check_health()
        except DFlashError as error:
            logging.getLogger("health").error("%s", error.message)
            os._exit(UNHEALTHY_EXIT)


def _say(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    writer.write(json.dumps(message).encode() + b"\n")
