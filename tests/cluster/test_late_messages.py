"""Every message that comes twice, and every answer that comes late, changes nothing (ARCHITECTURE section 8)."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.requests import TokenEvent
from cluster.transports.client_stream import ClientStream
from cluster.transports.grpc_options import open_channel
from cluster.transports.router_client import RouterClient
from cluster.wire.generations import events_to_pb
from dflash_core.runners.target import TargetRunner
from protos import drafter_pb2, router_pb2
from tests.cluster.serving import (
    TARGET_SETTINGS,
    check_outputs,
    decode_again,
    decode_plainly,
    make_cluster,
    tiny_request,
)
from tests.cluster.simulated_client import Client
from tests.tiny import TinyPair, make_tiny_pair
from tests.waiting import until

# What may come again at any time: answers, and ranges of positions.
_LATE = (drafter_pb2.DraftResult, drafter_pb2.ContextBatch, drafter_pb2.ContextAckBatch, router_pb2.TargetMessage)
# What says what to do from now on: twice in a row at most.
_TWICE = (drafter_pb2.DraftRequest, router_pb2.LeadMessage)


class Repeater:
    """Says things again on streams: at once, and long after."""

    def __init__(self, rng: random.Random, share: float) -> None:
        self._rng = rng
        self._share = share
        self.counts: dict[str, int] = defaultdict(int)  # messages that were said again, by type
        self._said: dict[type, deque[Any]] = defaultdict(lambda: deque(maxlen=200))
        self._unread: dict[ClientStream[Any, Any], list[Any]] = defaultdict(list)

    def again(self, message: Any) -> list[Any]:
        kind = type(message)
        if isinstance(message, router_pb2.TargetMessage) and message.WhichOneof("message") != "result":
            return []
        if not isinstance(message, _LATE + _TWICE) or self._rng.random() > self._share:
            return []
        repeated = [message]
        if isinstance(message, _LATE):
            if self._said[kind]:
                repeated.append(self._rng.choice(self._said[kind]))
            self._said[kind].append(message)
        self.counts[kind.__name__] += len(repeated)
        return repeated

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        read, write = ClientStream.read, ClientStream.write

        async def repeating_read(stream: ClientStream[Any, Any]) -> Any:
            if self._unread[stream]:
                return self._unread[stream].pop(0)
            message = await read(stream)
            self._unread[stream] += self.again(message)
            return message

        async def repeating_write(stream: ClientStream[Any, Any], message: Any) -> None:
            await write(stream, message)
            for repeated in self.again(message):
                await write(stream, repeated)

        monkeypatch.setattr(ClientStream, "read", repeating_read)
        monkeypatch.setattr(ClientStream, "write", repeating_write)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return make_tiny_pair(Path(tmp_path_factory.mktemp("pair")), num_layers=2, target_layer_ids=(0, 1))


@pytest.fixture(scope="module")
def plain_runner(pair: TinyPair) -> Iterator[TargetRunner]:
    return TargetRunner.load(str(pair.target), None, TARGET_SETTINGS)


async def test_what_is_said_again_changes_no_token(
    pair: TinyPair, plain_runner: TargetRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With targets and drafters that die meanwhile, so that answers of lost ones are among what comes late."""
    rng = random.Random(21)
    requests = [
        tiny_request(rng, f"r{i}", pair.settings.vocab_size, max_tokens=rng.randint(20, 60), tree_budget=8)
        for i in range(10)
    ]
    expected = await decode_plainly(plain_runner, requests)
    repeater = Repeater(rng, share=0.15)
    repeater.install(monkeypatch)
    async with make_cluster(pair, num_drafters=2, num_targets=2, max_retries=1_000) as cluster:
        for request in requests:
            cluster.pool.submit(request, cluster.client)
        await until(lambda: len(cluster.client.tokens) == len(requests))
        await cluster.lose(cluster.drafters[0])
        await cluster.lose(cluster.targets[0])
        cluster.add_target()
        await check_outputs(cluster.client, expected)
        kinds = {kind.__name__ for kind in (*_LATE, *_TWICE)}
        for _ in range(20):
            if set(repeater.counts) >= kinds:
                break
            await decode_again(cluster, requests, expected)
        await cluster.check_nothing_left()
    assert set(repeater.counts) >= kinds, dict(repeater.counts)


async def test_tokens_of_a_router_that_was_left_are_dropped(pair: TinyPair) -> None:
    """Its stream may still bring them after the gateway has given the sequence to another."""
    request = tiny_request(random.Random(4), "moved", pair.settings.vocab_size, max_tokens=200)
    late = router_pb2.RouterMessage(tokens=events_to_pb([TokenEvent("moved", np.asarray([7, 7, 7], np.int32))]))
    async with make_cluster(pair) as cluster, open_channel(cluster.routers[0].address) as channel:
        left, client = RouterClient(cluster.routers[0].address, channel), Client()
        run = asyncio.create_task(left.run())
        left.submit(request, client)
        left.cancel("moved")
        left._take(late)
        assert client.tokens == {}
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        await cluster.check_nothing_left()
