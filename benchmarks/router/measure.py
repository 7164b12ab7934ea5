"""Rounds of the real router against instant runners, in one process and over gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.router.instant import Ignored, InstantDrafter, InstantTarget, Load
from benchmarks.router.peers import started
from cluster.router import Router, RouterSettings
from cluster.router.timings import COMMIT, LEARN, PLAN, RoundTimings
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
    learn_ms: float
    nodes_per_tree: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class _CpuTimings(RoundTimings):
    """Times the stages by the thread's CPU time, so that what else runs on the machine does not count."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin = time.thread_time_ns()
        try:
            yield
        finally:
            self.add(name, (time.thread_time_ns() - begin) // 1000)


async def in_process(load: Load, num_rounds: int) -> Cost:
    """The runners have a thread of their own: theirs is not the router's time."""
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="instant")
    router = _router(load)
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
    router = _router(load)
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
        plan_ms=timings.stages[PLAN].total_us / 1e3 / timings.rounds,
        commit_ms=timings.stages[COMMIT].total_us / 1e3 / timings.rounds,
        learn_ms=timings.stages[LEARN].total_us / 1e3 / timings.rounds if LEARN in timings.stages else 0.0,
        nodes_per_tree=timings.tree_nodes / timings.tree_sequences,
    )


def _clocks() -> tuple[float, float, float]:
    return time.thread_time(), time.process_time(), time.perf_counter()


def _router(load: Load) -> Router:
    """One micro-batch, since two would be two rounds of half as many sequences; all drafts in every round, since there
    is less to do without some of them."""
    settings = RouterSettings(
        tree_budget=load.tree_budget,
        micro_batches=1,
        always_waits=True,
        max_running=load.num_sequences,
        prefill_chunk_tokens=load.max_rows,
    )
    router = Router(settings)
    router.timings = _CpuTimings()
    return router


async def _until(condition: Callable[[], bool]) -> None:
    """Polls rarely: the router must have the thread for itself."""
    async with asyncio.timeout(_LONGEST_WAIT_S):
        while not condition():
            await asyncio.sleep(0.02)
