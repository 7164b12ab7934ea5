"""How soon a peer is left that accepts and says nothing, with the settings of production (docs/reliability.md)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.chaos.links import Link, ProxiedLinks
from tests.chaos.proxy import Fault
from tests.chaos.runs import ChaosCluster, chaos_cluster, check_run, streams_open
from tests.chaos.workload import Workload
from tests.tiny import TinyPair
from tests.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

LATEST_S = 60.0  # a keepalive that is switched off or incomplete would take minutes, or for ever


async def _wait_until_found(cluster: ChaosCluster, link: Link) -> None:
    """Until the side that waits for the other has given it up."""
    (router,) = cluster.supervisor.of("router")
    match link:
        case Link.GATEWAY_ROUTER:
            await until(lambda: not cluster.pool.is_ready, LATEST_S)
        case Link.TARGET_ROUTER | Link.ROUTER_DRAFTER:
            name = "num_targets" if link is Link.TARGET_ROUTER else "num_drafters"
            deadline = time.monotonic() + LATEST_S
            while (await router.ask("state"))[name]:
                assert time.monotonic() < deadline, f"{link.value}: not found within {LATEST_S} s"


@pytest.mark.parametrize("fault", [Fault.HALF_OPEN, Fault.FROZEN])
@pytest.mark.parametrize("link", [Link.GATEWAY_ROUTER, Link.TARGET_ROUTER, Link.ROUTER_DRAFTER])
async def test_a_silent_peer_is_left(
    pair: TinyPair, workload: Workload, tmp_path: Path, link: Link, fault: Fault
) -> None:
    links = ProxiedLinks()
    async with chaos_cluster(tmp_path, pair, {"router": 1, "drafter": 1, "target": 1}, links) as cluster:
        async with streams_open(cluster, workload, 1, 8):
            began = time.monotonic()
            links.set_fault(link, fault)
            await _wait_until_found(cluster, link)
            print(f"\n{link.value}, {fault.value}: found after {time.monotonic() - began:.1f} s")
            links.set_fault(link, Fault.NONE)
        await check_run(cluster, workload)
