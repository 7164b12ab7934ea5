"""Connections that fail between processes that live, and processes that stop without dying."""

from __future__ import annotations

import asyncio
import random
import signal

import pytest

from tests.chaos.links import Link, ProxiedLinks
from tests.chaos.proxy import Fault
from tests.chaos.runs import ChaosCluster, check_run, streams_open
from tests.chaos.workload import Workload

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

NUM_STREAMS = 16
FAULTS = (Fault.DELAY, Fault.REFUSED, Fault.HALF_OPEN, Fault.FROZEN)
# Longer than keepalive's period and timeout here, so that a silent peer is noticed before it speaks again.
SILENT_S = 3.0
SHORT_S = 0.5


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[] if seed == 0 else pytest.mark.slow) for seed in range(len(FAULTS))]
)
async def test_every_link_may_fail(cluster: ChaosCluster, links: ProxiedLinks, workload: Workload, seed: int) -> None:
    """Each link one of the faults, one after the other; the seeds together each link with each fault."""
    async with streams_open(cluster, workload, seed, NUM_STREAMS):
        for number, link in enumerate(Link):
            fault = FAULTS[(number + seed) % len(FAULTS)]
            links.set_fault(link, fault)
            await asyncio.sleep(SILENT_S if fault in (Fault.HALF_OPEN, Fault.FROZEN) else SHORT_S)
            links.set_fault(link, Fault.NONE)
            await cluster.wait_for_tokens()
    await check_run(cluster, workload)


async def test_connections_are_reset_again_and_again(
    cluster: ChaosCluster, links: ProxiedLinks, workload: Workload
) -> None:
    rng = random.Random(3)
    async with streams_open(cluster, workload, 7, NUM_STREAMS):
        for _ in range(20):
            rng.choice(links.proxies(rng.choice(list(Link)))).reset_all()
            await cluster.wait_for_tokens(20)
    await check_run(cluster, workload)


@pytest.mark.parametrize("role", ["drafter", "target", "router"])
async def test_a_stopped_process_is_left_and_taken_back(cluster: ChaosCluster, workload: Workload, role: str) -> None:
    """SIGSTOP: its sockets accept, nobody answers. Others take its streams; what it says when it goes on is late."""
    async with streams_open(cluster, workload, 5, NUM_STREAMS):
        victim = cluster.supervisor.of(role)[0]
        victim.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(SILENT_S)
            await cluster.wait_for_tokens(300)
        finally:
            victim.signal(signal.SIGCONT)
        await cluster.wait_for_tokens(100)
    await check_run(cluster, workload)
