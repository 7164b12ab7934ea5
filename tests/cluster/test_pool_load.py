"""What drafters, targets and routers know of the load on their pools."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cluster.transports.draft_lag import DraftLag
from tests.cluster.serving import make_cluster, tiny_request
from tests.tiny import TinyPair, make_tiny_pair
from tests.waiting import until


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return make_tiny_pair(Path(tmp_path_factory.mktemp("pair")), num_layers=2, target_layer_ids=(0, 1))


def test_lag_is_the_mean_since_it_was_asked_for() -> None:
    lag = DraftLag()
    assert lag.take_mean_ms() == 0
    lag.note(0.25)
    lag.note(0.75)
    assert lag.take_mean_ms() == 500
    assert lag.take_mean_ms() == 0


async def test_each_replica_is_told_its_share_of_the_queue(pair: TinyPair) -> None:
    rng = random.Random(6)
    async with make_cluster(pair, num_targets=2, num_drafters=2, max_running=1) as cluster:
        (router,) = cluster.routers
        for number in range(7):
            request = tiny_request(rng, f"q{number}", pair.settings.vocab_size, max_tokens=150, tree_budget=7)
            cluster.pool.submit(request, cluster.client)
        # One runs on each target and five wait: three for each, rounded up, and fewer as soon as one is done.
        await until(lambda: all(1 <= target.agent.queued_sequences <= 3 for target in cluster.targets))
        await until(lambda: any(1 <= drafter.service.queued_sequences <= 3 for drafter in cluster.drafters))
        await until(lambda: router.service.num_rounds_in_flight)
        for number in range(7):
            cluster.pool.cancel(f"q{number}")
        await cluster.check_nothing_left()
        assert [target.agent.queued_sequences for target in cluster.targets] == [0, 0]
        await until(lambda: router.service.num_rounds_in_flight == 0)
