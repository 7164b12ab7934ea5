"""Routers that come and go: each leads its share of the targets, and no stream suffers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.transports.target_share import TargetShare, share_of
from dflash_core.runners.target import TargetRunner
from tests.cluster.serving import TARGET_SETTINGS, check_outputs, decode_plainly, make_cluster, tiny_request
from tests.tiny import TinyPair, make_tiny_pair
from tests.waiting import until


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return make_tiny_pair(Path(tmp_path_factory.mktemp("pair")), num_layers=2, target_layer_ids=(0, 1))


@given(st.integers(0, 1000), st.integers(1, 100))
def test_shares_hold_every_target_and_none_is_empty_for_nothing(num_targets: int, num_routers: int) -> None:
    share = share_of(num_targets, num_routers)
    assert share * num_routers >= num_targets > (share - 1) * num_routers


async def test_a_new_router_gets_a_target_of_another(pair: TinyPair) -> None:
    rng = random.Random(4)
    requests = [tiny_request(rng, f"s{i}", pair.settings.vocab_size, max_tokens=60) for i in range(6)]
    plain = TargetRunner.load(str(pair.target), None, TARGET_SETTINGS)
    expected = await decode_plainly(plain, requests)
    async with make_cluster(pair, num_targets=2) as cluster:
        (old,) = cluster.routers
        old_share = TargetShare(old.service)
        for request in requests:
            cluster.pool.submit(request, cluster.client)
        await until(lambda: len(cluster.client.tokens) == len(requests))
        new = await cluster.add_router()
        new_share = TargetShare(new.service)
        assert old_share.max_targets() is None
        await old_share.update([new.address])
        await new_share.update([old.address])
        await until(lambda: (old.router.num_targets, new.router.num_targets) == (1, 1))
        await old_share.update([new.address])
        assert (old_share.max_targets(), old.router.num_targets) == (2, 1)
        await check_outputs(cluster.client, expected)
        await cluster.check_nothing_left()


async def test_a_peer_that_does_not_answer_or_drains_has_no_share(pair: TinyPair) -> None:
    async with make_cluster(pair, num_targets=1) as cluster:
        (router,) = cluster.routers
        share = TargetShare(router.service)
        peer = await cluster.add_router()
        await share.update([peer.address])
        assert share.max_targets() == 1
        await peer.service.drain(1.0)
        await share.update([peer.address])
        assert share.max_targets() is None
        await cluster.lose(peer)
        await share.update([peer.address])
        assert share.max_targets() is None
        assert router.router.num_targets == 1
