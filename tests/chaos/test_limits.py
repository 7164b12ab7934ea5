"""Overload, steps that never end and targets that do not come back: clear answers within stated times."""

from __future__ import annotations

import asyncio
import random

import pytest

from dflash_core.errors import DeadlineExceeded, Overloaded, Unavailable
from tests.chaos.runs import ChaosCluster, check_run, streams_open
from tests.chaos.workload import Recorder, Stream, Workload, check_streams

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

CAPACITY = 24  # of the small cluster: 8 that run and 16 that wait


async def _all_ended(streams: list[Stream]) -> None:
    async with asyncio.timeout(120):
        for stream in streams:
            await stream.done.wait()


def _error(stream: Stream) -> Exception | None:
    assert stream.last is not None
    return stream.last.error


async def test_ten_times_the_capacity_is_refused_at_once(small_cluster: ChaosCluster, workload: Workload) -> None:
    """Who is taken gets every token, who is not is told when to come back; nobody runs into a time-out."""
    cluster, rng = small_cluster, random.Random(0)
    cluster.recorder = Recorder()
    (router,) = cluster.supervisor.of("router")
    waves: list[list[Stream]] = []
    most_waiting = 0
    for _ in range(3):
        waves.append([cluster.start(rng.choice(workload.requests)) for _ in range(10 * CAPACITY)])
        most_waiting = max(most_waiting, (await router.ask("state"))["num_waiting"])
        await cluster.wait_for_tokens(200)
    streams = [stream for wave in waves for stream in wave]
    await _all_ended(streams)
    errors = [error for stream in streams if (error := _error(stream)) is not None]
    assert len(errors) > 5 * CAPACITY
    assert most_waiting <= 16
    for error in errors:
        assert isinstance(error, Overloaded), error
        assert error.retry_after_s >= 1.0
    taken = [stream for stream in streams if _error(stream) is None]
    assert len(taken) >= CAPACITY
    check_streams(workload, taken)
    # What was refused left nothing behind: the next ones are taken, and drafted for as before.
    async with streams_open(cluster, workload, 1, CAPACITY):
        await cluster.wait_for_tokens(200)
    await check_run(cluster, workload)
    last = [stream.last for stream in cluster.recorder.streams.values() if stream.request.tree_budget == 16]
    assert any(
        event is not None and event.statistics is not None and event.statistics.accepted_tokens for event in last
    )


async def test_deadlines_end_requests_wherever_they_are(small_cluster: ChaosCluster, workload: Workload) -> None:
    """In the queue, during prefill and while decoding: what has ended holds nothing."""
    cluster, rng = small_cluster, random.Random(2)
    cluster.recorder = Recorder()
    streams = [
        cluster.start(rng.choice(workload.requests), timeout_ms=rng.choice([1, 5, 20, 50, 100, 200]))
        for _ in range(CAPACITY)
    ]
    await _all_ended(streams)
    errors = [_error(stream) for stream in streams]
    assert any(isinstance(error, DeadlineExceeded) for error in errors)
    assert all(error is None or isinstance(error, DeadlineExceeded) for error in errors)
    await cluster.wait_until_whole()


async def test_a_stuck_step_restarts_that_process_alone(small_cluster: ChaosCluster, workload: Workload) -> None:
    """The round's own deadline finds it: keepalive is answered by another thread. The streams go on elsewhere."""
    cluster = small_cluster
    others = {member.pid for role in ("router", "drafter") for member in cluster.supervisor.of(role)}
    async with streams_open(cluster, workload, 3, 8):
        (stuck,) = cluster.supervisor.of("target")
        await stuck.ask("hang")
        await asyncio.wait_for(stuck.ended.wait(), 60)
        await cluster.replace_all("target")
    await check_run(cluster, workload)
    assert {member.pid for role in ("router", "drafter") for member in cluster.supervisor.of(role)} == others


async def test_a_stuck_drafter_slows_and_stops_nothing(small_cluster: ChaosCluster, workload: Workload) -> None:
    async with streams_open(small_cluster, workload, 4, 8):
        (stuck,) = small_cluster.supervisor.of("drafter")
        await stuck.ask("hang")
        await small_cluster.wait_for_tokens(200)
        await small_cluster.supervisor.kill(stuck)
        await small_cluster.replace_all("drafter")
    await check_run(small_cluster, workload)


async def test_without_a_target_for_long_requests_are_refused(small_cluster: ChaosCluster, workload: Workload) -> None:
    """After `failover_timeout_s`: those that ran, those that waited and those that came meanwhile."""
    cluster = small_cluster
    cluster.recorder = Recorder()
    before = [cluster.start(request) for request in workload.requests[:CAPACITY]]
    await cluster.wait_for_tokens(10)
    await cluster.kill_all("target")
    (router,) = cluster.supervisor.of("router")
    while (await router.ask("state"))["num_targets"]:  # until it has noticed, a newcomer may find its queue full
        await asyncio.sleep(0.01)
    meanwhile = [cluster.start(request) for request in workload.requests[:4]]
    await _all_ended([*before, *meanwhile])
    unfinished = [error for stream in [*before, *meanwhile] if (error := _error(stream)) is not None]
    assert len(unfinished) >= 8 + len(meanwhile)
    assert {type(error) for error in unfinished} == {Unavailable}, unfinished
    assert not cluster.pool.is_ready
    assert cluster.pool.num_active == 0
    await cluster.replace_all("target")
    async with streams_open(cluster, workload, 6, 8):
        pass
    await check_run(cluster, workload)
