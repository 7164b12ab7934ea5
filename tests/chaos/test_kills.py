"""Processes die by SIGKILL under load, and no client's token changes. The long form is `make chaos`."""

from __future__ import annotations

import asyncio

import pytest

from cluster.requests import FinishReason
from dflash_core.errors import DeadlineExceeded
from tests.chaos.runs import ChaosCluster, check_run, make_kills, run_chaos, streams_open
from tests.chaos.workload import Workload
from tests.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]


async def test_any_process_may_be_killed(cluster: ChaosCluster, workload: Workload) -> None:
    report = await run_chaos(cluster, workload, 1, make_kills(1, 5))
    assert report.verdict.num_streams >= 32
    assert sum(len(recovery.pauses_s) for recovery in report.recoveries) > 0


async def test_streams_go_on_without_any_drafter(cluster: ChaosCluster, workload: Workload) -> None:
    async with streams_open(cluster, workload):
        await cluster.kill_all("drafter")
        await cluster.wait_for_tokens(200)
        await cluster.replace_all("drafter")
        new = cluster.supervisor.of("drafter")
        while sum([(await drafter.ask("state"))["num_drafts"] for drafter in new]) < 20:
            await cluster.wait_for_tokens(1)
    await check_run(cluster, workload)


async def test_streams_wait_for_a_target(cluster: ChaosCluster, workload: Workload) -> None:
    async with streams_open(cluster, workload):
        await cluster.kill_all("target")
        await until(lambda: not cluster.pool.is_ready)
        late = cluster.start(workload.requests[0])
        hurried = cluster.start(workload.requests[1], timeout_ms=100)
        await hurried.done.wait()
        assert hurried.last is not None
        assert isinstance(hurried.last.error, DeadlineExceeded)
        del cluster.recorder.streams[hurried.request.sequence_id]
        assert late.tokens == []
        assert late.last is None
        await cluster.replace_all("target")
        await until(lambda: cluster.pool.is_ready)  # by itself
    await asyncio.wait_for(late.done.wait(), 60)
    assert late.last is not None
    assert late.last.finish_reason is FinishReason.LENGTH
    await check_run(cluster, workload)


async def test_streams_wait_for_a_router(cluster: ChaosCluster, workload: Workload) -> None:
    async with streams_open(cluster, workload):
        await cluster.kill_all("router")
        await until(lambda: not cluster.pool.is_ready)
        await cluster.replace_all("router")
    await check_run(cluster, workload)
