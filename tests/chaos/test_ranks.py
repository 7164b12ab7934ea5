"""A target over two ranks, one of which is killed under load: its group ends and comes back, and no token changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.runs import RANK, Kill, chaos_cluster, run_chaos
from tests.chaos.workload import Workload
from tests.tiny import TinyPair

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

COUNTS = {"router": 1, "drafter": 1, "target": 1}


async def test_a_rank_may_be_killed(pair: TinyPair, workload: Workload, tmp_path: Path) -> None:
    kills = [Kill(role, 0.5, 0.0, is_alone=True) for role in (RANK, "target", RANK)]
    async with chaos_cluster(tmp_path, pair, COUNTS, tensor_parallel=2) as cluster:
        report = await run_chaos(cluster, workload, 1, kills, num_streams=8)
        print(report.verdict)
    assert [bool(recovery.pauses_s) for recovery in report.recoveries] == [True] * 3
