"""Rounds of the real router against instant runners, in one process and over gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.router.instant import Ignored, InstantDrafter, InstantTarget, Load
from benchmarks.router.peers import started
from cluster.router import Router, RouterSettings
from cluster.router.timings import COMMIT, PLAN
from cluster.transports.grpc_drafter import DrafterDialer
from cluster.transports.grpc_options import start_server
from cluster.transports.in_process import InProcessContextSink, InProcessDrafter, InProcessTarget
from cluster.transports.router_service import RouterService

_WARM_UP_ROUNDS = 30
_LONGEST_WAIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Cost:
    """Milliseconds per round. `loop_ms` is the CPU time of the event loop's thread, in which all of the router runs;
    `process_ms` that of all threads, gRPC's own among them; `wall_ms` what a round takes, the peers' part included."""

    rounds: int
    loop_ms: float
    process_ms: float
    wall_ms: float
    plan_ms: float
    commit_ms: float
    nodes_per_tree: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


async def in_process(load: Load, num_rounds: int) -> Cost:
    """The runners have a thread of their own: theirs is not the router's time."""
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="instant")
    router = Router(_settings(load))
    drafter = InProcessDrafter(InstantDrafter(), executor)
    router.add_target(InProcessTarget(InstantTarget(load), InProcessContextSink(drafter), executor))
    router.add_drafter(drafter)
    try:
        sink = Ignored()
        for request in load.requests():
            router.submit(request, sink)
        return await _measured(router, load, num_rounds)
    finally:
        await router.close()
        executor.shutdown()


async def over_grpc(load: Load, num_rounds: int) -> Cost:
    """Target, drafter and gateway are in another process, each on a connection of its own."""
    router = Router(_settings(load))
    service = RouterService(router)
    server = await start_server(service.register)
    drafters = DrafterDialer(router)
    with started(load) as peers:
        try:
            drafters.set_endpoints([await peers.drafter_address()])
            await _until(lambda: router.num_drafters == 1)
            await peers.decode(server.address)
            return await _measured(router, load, num_rounds)
        finally:
            await service.drain(timeout_s=0.0)
            await router.close()
            await drafters.close()
            await peers.stop()
            await server.stop()


async def _measured(router: Router, load: Load, num_rounds: int) -> Cost:
    timings = router.timings
    await _until(lambda: router.num_running == load.num_sequences)
    begin = timings.rounds
    await _until(lambda: timings.rounds >= begin + _WARM_UP_ROUNDS)
    timings.reset()
    clocks = _clocks()
    await _until(lambda: timings.rounds >= num_rounds)
    loop_ms, process_ms, wall_ms = (
        (after - before) * 1e3 / timings.rounds for before, after in zip(clocks, _clocks(), strict=True)
    )
    if router.num_running < load.num_sequences:
        raise RuntimeError(f"{router.num_running} of {load.num_sequences} sequences are left after {num_rounds} rounds")
    return Cost(
        rounds=timings.rounds,
        loop_ms=loop_ms,
        process_ms=process_ms,
        wall_ms=wall_ms,
        plan_ms=timings.stages[PLAN].mean_us / 1e3,
        commit_ms=timings.stages[COMMIT].mean_us / 1e3,
        nodes_per_tree=timings.tree_nodes / timings.tree_sequences,
    )


def _clocks() -> tuple[float, float, float]:
    return time.thread_time(), time.process_time(), time.perf_counter()


def _settings(load: Load) -> RouterSettings:
    return RouterSettings(
        tree_budget=load.tree_budget, max_running=load.num_sequences, prefill_chunk_tokens=load.max_rows
    )


async def _until(condition: Callable[[], bool]) -> None:
    """Polls rarely: the router must have the thread for itself."""
    async with asyncio.timeout(_LONGEST_WAIT_S):
        while not condition():
            await asyncio.sleep(0.02)
