"""Starts, lists, asks and kills the processes of a cluster: what Ray Serve does, under a test's control."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from tests.chaos import roles
from tests.chaos.links import DirectLinks, Link, Links
from tests.chaos.warm import VARIABLE
from tests.tiny import TinyPair

START_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 20.0


class MemberEnded(Exception):
    """A process ended before it answered."""


@dataclass(eq=False)
class Member:
    """One process. `address` is its own; others may be told to reach it elsewhere."""

    role: str
    name: str
    process: BaseProcess
    address: str = ""
    pid: int = 0
    said_hello: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    writer: asyncio.StreamWriter | None = None
    answers: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)
    numbers: Any = field(default_factory=lambda: count(1))

    @property
    def is_here(self) -> bool:
        return self.said_hello.is_set() and not self.ended.is_set()

    async def ask(self, question: str) -> dict[str, Any]:
        """Raises `MemberEnded`, or `TimeoutError` where it is stopped or stuck."""
        number = next(self.numbers)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.answers[number] = answer
        self.say({"ask": question, "number": number})
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            return await answer

    def say(self, message: dict[str, Any]) -> None:
        if self.ended.is_set() or self.writer is None:
            raise MemberEnded(self.name)
        self.writer.write(json.dumps(message).encode() + b"\n")

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)


class Supervisor:
    """`counts`: how many of each role there are to be; `options` go to every process (`roles.ROLES`).

    `on_routers` is told the routers' addresses as the gateway reaches them.
    """

    def __init__(
        self,
        folder: Path,
        pair: TinyPair,
        counts: dict[str, int],
        options: dict[str, Any],
        on_routers: Callable[[list[str]], None],
        links: Links | None = None,
    ) -> None:
        self.members: list[Member] = []
        self.counts = counts
        self.links = links or DirectLinks()
        self._folder = folder
        self._options = options
        self._on_routers = on_routers
        self._numbers = {role: count(1) for role in roles.ROLES}
        os.environ[VARIABLE] = f"{pair.target}:{pair.drafter}"
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.chaos.warm"])
        self._server: asyncio.Server | None = None
        self._readers: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._server = await asyncio.start_unix_server(self._connected, self._folder / "supervisor.sock")

    def of(self, role: str) -> list[Member]:
        return [member for member in self.members if member.role == role and member.is_here]

    async def start(self, role: str) -> Member:
        """Returns when the new process serves and the others are told of it."""
        name = f"{role}-{next(self._numbers[role])}"
        arguments = (role, name, str(self._folder), self._options)
        process = self._context.Process(target=roles.main, args=arguments, name=name, daemon=True)
        member = Member(role, name, process)
        self.members.append(member)
        await asyncio.to_thread(process.start)
        async with asyncio.timeout(START_TIMEOUT_S):
            await member.said_hello.wait()
        await self.links.add(member)
        self._tell_all()
        return member

    async def kill(self, member: Member) -> None:
        """SIGKILL; returns when the process is gone and the others are told."""
        member.signal(signal.SIGKILL)
        await member.ended.wait()

    async def start_all(self) -> None:
        await asyncio.gather(*(self.start(role) for role, number in self.counts.items() for _ in range(number)))

    async def states(self) -> dict[str, dict[str, Any]]:
        """Of every process that is here."""
        members = [member for member in self.members if member.is_here]
        answers = await asyncio.gather(*(member.ask("state") for member in members))
        return {member.name: answer for member, answer in zip(members, answers, strict=True)}

    async def close(self) -> None:
        for member in self.members:
            if member.pid and not member.ended.is_set():
                member.signal(signal.SIGKILL)
        await asyncio.gather(*self._readers, return_exceptions=True)
        await self.links.close()
        if self._server is not None:
            self._server.close()

    # --- the processes' side

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._readers.add(task)
        member: Member | None = None
        try:
            while line := await reader.readline():
                message = json.loads(line)
                if "hello" in message:
                    member = next(member for member in self.members if member.name == message["hello"])
                    member.writer, member.address, member.pid = writer, message["address"], message["pid"]
                    member.said_hello.set()
                elif member is not None:
                    member.answers.pop(message["number"]).set_result(message["answer"])
        except ConnectionError:
            pass
        finally:
            writer.close()
            self._readers.discard(task)
            if member is not None:
                self._ended(member)

    def _ended(self, member: Member) -> None:
        member.ended.set()
        self.members.remove(member)
        self.links.remove(member)
        for answer in member.answers.values():
            if not answer.done():
                answer.set_exception(MemberEnded(member.name))
                answer.exception()
        self._tell_all()

    def _tell_all(self) -> None:
        """Every process and the gateway: who is dialled where."""
        drafters = self.of("drafter")
        for member in [member for member in self.members if member.is_here]:
            listing = {
                "routers": [self.links.address(Link.TARGET_ROUTER, router) for router in self.of("router")],
                "drafters": [self.links.address(Link.ROUTER_DRAFTER, drafter) for drafter in drafters],
                # A target is told the address by which the router knows the drafter.
                "routes": {
                    self.links.address(Link.ROUTER_DRAFTER, drafter): self.links.address(Link.TARGET_DRAFTER, drafter)
                    for drafter in drafters
                },
            }
            member.say({"listing": listing})
        self._on_routers([self.links.address(Link.GATEWAY_ROUTER, router) for router in self.of("router")])


@asynccontextmanager
async def supervised(*arguments: Any, **keywords: Any) -> AsyncIterator[Supervisor]:
    """A supervisor whose processes all serve; they are gone at the end."""
    supervisor = Supervisor(*arguments, **keywords)
    try:
        await supervisor.listen()
        await supervisor.start_all()
        yield supervisor
    finally:
        await supervisor.close()


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
