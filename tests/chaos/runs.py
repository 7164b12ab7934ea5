"""One seeded run: streams, what is killed meanwhile, and how long each affected stream paused."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.requests import GenerationRequest
from cluster.transports.router_pool import RouterPool
from tests.chaos.links import Links
from tests.chaos.roles import short_keepalive
from tests.chaos.supervisor import MemberEnded, Supervisor, supervised
from tests.chaos.workload import Recorder, Stream, Verdict, Workload, check_streams
from tests.cluster.serving import DRAFTER_SETTINGS, TARGET_SETTINGS
from tests.tiny import TinyPair
from tests.waiting import until

COUNTS = {"router": 2, "drafter": 2, "target": 2}
VICTIMS = ("drafter", "target", "router")
RANK = "rank"  # of a target that has several: another process than the one that the supervisor started
NUM_STREAMS = 32


def member_options(pair: TinyPair, counts: dict[str, int], **changes: Any) -> dict[str, Any]:
    """What every process is told; `changes` are fields of `RouterSettings`, or `keepalive_ms`, `tensor_parallel`."""
    keepalive_ms = changes.pop("keepalive_ms", None)
    tensor_parallel = changes.pop("tensor_parallel", 1)
    router = {"tree_budget": 12, "prefill_chunk_tokens": 64, **changes}
    return {
        "target": str(pair.target),
        "drafter": str(pair.drafter),
        "target_settings": TARGET_SETTINGS.model_dump() | {"num_blocks": 1024, "tensor_parallel": tensor_parallel},
        "drafter_settings": DRAFTER_SETTINGS.model_dump() | {"num_blocks": 1024},
        "router": router,
        "max_targets": -(-counts["target"] // counts["router"]),
        "keepalive_ms": keepalive_ms,
    }


@dataclass
class ChaosCluster:
    """Processes, and a gateway's pool of routers in this one."""

    supervisor: Supervisor
    pool: RouterPool
    recorder: Recorder = field(default_factory=Recorder)

    def start(self, template: GenerationRequest, **changes: Any) -> Stream:
        stream = self.recorder.new(template, **changes)
        self.pool.submit(stream.request, self.recorder)
        return stream

    async def wait_for_tokens(self, number: int = 100) -> None:
        """Until so many more have come, whoever gets them."""
        wanted = self.recorder.num_tokens + number
        await until(lambda: self.recorder.num_tokens >= wanted)

    async def is_whole(self) -> bool:
        """Everybody is there, knows the others, and holds nothing."""
        counts = self.supervisor.counts
        if any(len(self.supervisor.of(role)) != number for role, number in counts.items()):
            return False
        try:
            states = await self.supervisor.states()
        except MemberEnded:
            return False
        return all(_is_at_rest(name, state, counts) for name, state in states.items())

    async def wait_until_whole(self, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not await self.is_whole():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not at its start values after {timeout_s} s: {await self.supervisor.states()}")
            await asyncio.sleep(0.05)
        assert self.pool.num_active == 0
        await until(lambda: self.pool.is_ready)

    async def kill_all(self, role: str) -> None:
        await asyncio.gather(*(self.supervisor.kill(member) for member in self.supervisor.of(role)))

    async def replace_all(self, role: str) -> None:
        lacking = self.supervisor.counts[role] - len(self.supervisor.of(role))
        await asyncio.gather(*(self.supervisor.start(role) for _ in range(lacking)))


def _is_at_rest(name: str, state: dict[str, Any], counts: dict[str, int]) -> bool:
    match name.partition("-")[0]:
        case "router":
            share = counts["target"] // counts["router"]
            is_known = state["num_drafters"] == counts["drafter"] and state["num_targets"] == share
            return is_known and state["num_active"] == state["num_waiting"] == state["num_running"] == 0
        case "target":
            return state["num_sequences"] == 0 and state["free_blocks"] == 1024
        case "drafter":
            return state["num_sequences"] == state["num_contexts"] == 0 and state["free_blocks"] == 1024
        case _:
            return not state["held"]


@asynccontextmanager
async def chaos_cluster(
    folder: Path,
    pair: TinyPair,
    counts: dict[str, int] | None = None,
    links: Links | None = None,
    failover_timeout_s: float = 60.0,
    **options: Any,
) -> AsyncIterator[ChaosCluster]:
    counts = counts or COUNTS
    told = member_options(pair, counts, failover_timeout_s=failover_timeout_s, **options)
    with short_keepalive(*told["keepalive_ms"]) if told["keepalive_ms"] else nullcontext():
        pool = RouterPool(failover_timeout_s)
        try:
            async with supervised(folder, pair, counts, told, pool.set_endpoints, links) as supervisor:
                cluster = ChaosCluster(supervisor, pool)
                await cluster.wait_until_whole()
                yield cluster
        finally:
            await pool.close()


# --- what is killed, and when


@dataclass(frozen=True)
class Kill:
    role: str
    after_s: float  # the one before
    held_back_s: float  # until its replacement starts
    is_alone: bool  # nothing else is killed until all is as before

    @property
    def member_role(self) -> str:
        """Of the process of the supervisor that ends."""
        return "target" if self.role == RANK else self.role


def make_kills(seed: int, number: int, victims: tuple[str, ...] = VICTIMS) -> list[Kill]:
    """Each role in turn first, one after the other; then any at random, whatever is still amiss."""
    rng = random.Random(seed)
    in_turn = list(victims)
    rng.shuffle(in_turn)
    chosen = [*in_turn, *(rng.choice(victims) for _ in range(number - len(in_turn)))][:number]
    return [
        Kill(role, rng.uniform(0.2, 1.0), rng.uniform(0.0, 0.6), place < len(in_turn))
        for place, role in enumerate(chosen)
    ]


@dataclass(frozen=True)
class Recovery:
    """One kill. A pause is the time from the kill to the next token of a stream that the victim held."""

    role: str
    is_alone: bool
    pauses_s: list[float]
    num_ended: int  # affected streams whose last token was on its way already


@dataclass(frozen=True)
class ChaosReport:
    seed: int
    verdict: Verdict
    recoveries: list[Recovery]
    seconds: float


@dataclass(frozen=True)
class _Struck:
    kill: Kill
    at: float
    held: list[str]

    def recovery(self, streams: dict[str, Stream]) -> Recovery:
        pauses, num_ended = [], 0
        for sequence_id in self.held:
            next_at = next((at for at in streams[sequence_id].arrivals if at > self.at), None)
            if next_at is None:
                num_ended += 1
            else:
                pauses.append(next_at - self.at)
        return Recovery(self.kill.role, self.kill.is_alone, pauses, num_ended)


@asynccontextmanager
async def streams_open(
    cluster: ChaosCluster, workload: Workload, seed: int = 0, number: int = NUM_STREAMS
) -> AsyncIterator[None]:
    """Keeps so many streams open while the body runs; then lets them end. To be checked by `check_run`."""
    cluster.recorder = Recorder()
    over = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for slot in range(number):
            group.create_task(_keep_one_open(cluster, workload, random.Random(f"{seed}-{slot}"), over))
        await cluster.wait_for_tokens()
        yield
        over.set()


async def check_run(cluster: ChaosCluster, workload: Workload) -> Verdict:
    """Every token of every stream since `streams_open`, and that nothing is left of them anywhere."""
    await cluster.wait_until_whole()
    return check_streams(workload, list(cluster.recorder.streams.values()))


async def run_chaos(
    cluster: ChaosCluster, workload: Workload, seed: int, kills: list[Kill], num_streams: int = NUM_STREAMS
) -> ChaosReport:
    """Kills in their order while `num_streams` streams are open, and checks every token of each."""
    began = time.monotonic()
    async with streams_open(cluster, workload, seed, num_streams):
        struck = await _strike(cluster, random.Random(seed), kills)
    verdict = await check_run(cluster, workload)
    recoveries = [each.recovery(cluster.recorder.streams) for each in struck]
    return ChaosReport(seed, verdict, recoveries, time.monotonic() - began)


async def _keep_one_open(cluster: ChaosCluster, workload: Workload, rng: random.Random, over: asyncio.Event) -> None:
    while not over.is_set():
        await cluster.start(rng.choice(workload.requests)).done.wait()


async def _strike(cluster: ChaosCluster, rng: random.Random, kills: list[Kill]) -> list[_Struck]:
    struck = []
    async with asyncio.TaskGroup() as group:
        for kill in kills:
            await asyncio.sleep(kill.after_s)
            while not (victims := cluster.supervisor.of(kill.member_role)):  # all of them are down: others come
                await asyncio.sleep(0.05)
            victim = rng.choice(victims)
            state = await victim.ask("state")
            held, at = state["held"], time.monotonic()
            if kill.role == RANK:
                os.kill(rng.choice(state["rank_pids"]), signal.SIGKILL)
                await victim.ended.wait()  # by itself: its other ranks are of no use
            else:
                await cluster.supervisor.kill(victim)
            open_ids = {stream.request.sequence_id for stream in cluster.recorder.open_streams}
            struck.append(_Struck(kill, at, [sequence_id for sequence_id in held if sequence_id in open_ids]))
            replaced = group.create_task(_replace(cluster.supervisor, kill))
            if kill.is_alone:
                await replaced
                await _recovered(cluster, struck[-1])
    return struck


async def _recovered(cluster: ChaosCluster, struck: _Struck) -> None:
    streams = [cluster.recorder.streams[sequence_id] for sequence_id in struck.held]
    await until(lambda: all(stream.last or stream.arrivals[-1:] > [struck.at] for stream in streams))


async def _replace(supervisor: Supervisor, kill: Kill) -> None:
    await asyncio.sleep(kill.held_back_s)
    await supervisor.start(kill.member_role)
