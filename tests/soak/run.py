"""Mixed load with cancellations and kills, and what every process holds meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import psutil

from tests.chaos.runs import VICTIMS, ChaosCluster
from tests.chaos.supervisor import Member, MemberEnded
from tests.chaos.workload import Workload, check_streams

GATEWAY = "gateway"  # this process: its pool of routers, and the clients
CANCELLED_SHARE = 0.25
_MIB = 1 << 20


@dataclass(frozen=True)
class Sample:
    at_s: float  # since the beginning
    process: str
    figures: dict[str, float]


@dataclass
class Soak:
    """`protected` processes, one of each role, live from beginning to end: their figures must stay level."""

    cluster: ChaosCluster
    workload: Workload
    seed: int
    protected: list[Member] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    async def run(self, seconds: float, num_streams: int, sample_s: float, kill_s: float) -> None:
        """Returns when all streams have ended and nothing of them is left; fails on the first wrong token."""
        supervisor = self.cluster.supervisor
        self.protected = [supervisor.of(role)[0] for role in supervisor.counts]
        over = asyncio.Event()
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for slot in range(num_streams):
                group.create_task(self._client(random.Random(f"{self.seed}-{slot}"), over))
            group.create_task(self._kill_now_and_then(random.Random(self.seed), kill_s, over))
            while (at_s := time.monotonic() - began) < seconds:
                await self._sample(at_s)
                await asyncio.sleep(sample_s)
            over.set()
        for role in supervisor.counts:
            await self.cluster.replace_all(role)
        await self.cluster.wait_until_whole()

    async def _client(self, rng: random.Random, over: asyncio.Event) -> None:
        recorder = self.cluster.recorder
        while not over.is_set():
            stream = self.cluster.start(rng.choice(self.workload.requests))
            if rng.random() < CANCELLED_SHARE:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stream.done.wait(), rng.uniform(0.0, 1.0))
            else:
                await stream.done.wait()
            if stream.last is None:
                self.cluster.pool.cancel(stream.request.sequence_id)
                self.counts["cancelled"] += 1
            else:
                verdict = check_streams(self.workload, [stream])
                self.counts["checked"] += 1
                self.counts["tokens"] += verdict.num_tokens
                self.counts["differences within the error of fp32"] += verdict.num_explained
            del recorder.streams[stream.request.sequence_id]

    async def _kill_now_and_then(self, rng: random.Random, kill_s: float, over: asyncio.Event) -> None:
        """Never a protected one; each is replaced before the next goes, and the last before the end."""
        supervisor = self.cluster.supervisor
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), rng.uniform(0.5, 1.5) * kill_s)
                return
            role = rng.choice(VICTIMS)
            victim = next(member for member in supervisor.of(role) if member not in self.protected)
            await supervisor.kill(victim)
            self.counts[f"killed: {role}"] += 1
            await supervisor.start(role)

    async def _sample(self, at_s: float) -> None:
        self.samples.append(Sample(at_s, GATEWAY, self._own_figures()))
        # All at once: one that is asked after the others have answered may have been killed meanwhile.
        members = [member for member in self.cluster.supervisor.members if member.is_here]
        await asyncio.gather(*(self._sample_member(at_s, member) for member in members))

    async def _sample_member(self, at_s: float, member: Member) -> None:
        try:
            memory, state = await member.ask("memory"), await member.ask("state")
        except MemberEnded:
            return
        figures = {"uss_mib": memory["uss"] / _MIB, "fds": memory["fds"], "tasks": memory["tasks"]}
        figures |= {name: value for name, value in state.items() if isinstance(value, int)}
        self.samples.append(Sample(at_s, member.name, figures))

    def _own_figures(self) -> dict[str, Any]:
        gc.collect()
        process = psutil.Process()
        return {
            "uss_mib": process.memory_full_info().uss / _MIB,
            "fds": process.num_fds(),
            "tasks": len(asyncio.all_tasks()),
            "num_active": self.cluster.pool.num_active,
        }

    @property
    def long_lived(self) -> list[str]:
        return [GATEWAY, *(member.name for member in self.protected)]

    def figures_of(self, process: str, name: str) -> tuple[list[float], list[float]]:
        """Times in seconds, and values."""
        mine = [sample for sample in self.samples if sample.process == process and name in sample.figures]
        return [sample.at_s for sample in mine], [float(sample.figures[name]) for sample in mine]
