"""One pair and one workload for all tests, and one cluster of processes for those of a file: starting it takes longer
than most of these. It ends with them, since its load and its short keepalive in this process are not for others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.chaos.links import ProxiedLinks
from tests.chaos.runs import ChaosCluster, chaos_cluster
from tests.chaos.workload import Workload, make_workload
from tests.tiny import TinyPair, make_tiny_pair

KEEPALIVE_MS = (1_000, 1_000)  # in place of 5 s and 10 s


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return make_tiny_pair(Path(tmp_path_factory.mktemp("pair")), num_layers=2, target_layer_ids=(0, 1))


@pytest.fixture(scope="session")
def workload(pair: TinyPair) -> Workload:
    return asyncio.run(make_workload(pair))


@pytest.fixture(scope="module")
def links() -> ProxiedLinks:
    return ProxiedLinks()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cluster(
    pair: TinyPair, workload: Workload, links: ProxiedLinks, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ChaosCluster]:
    """Two of each kind, a proxy on every connection."""
    folder = tmp_path_factory.mktemp("cluster")
    async with chaos_cluster(folder, pair, links=links, keepalive_ms=KEEPALIVE_MS) as cluster:
        yield cluster


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def small_cluster(
    pair: TinyPair, workload: Workload, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ChaosCluster]:
    """One of each kind, little patience and a short queue."""
    async with chaos_cluster(
        tmp_path_factory.mktemp("small"),
        pair,
        {"router": 1, "drafter": 1, "target": 1},
        failover_timeout_s=5.0,
        round_timeout_ms=2_000,
        max_running=8,
        max_waiting=16,
    ) as cluster:
        yield cluster
