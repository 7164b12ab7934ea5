"""Router, drafter and target apart, over real sockets, with real tiny models: the tokens of plain decoding."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import torch

from cluster.requests import GenerationRequest
from cluster.transports.grpc_options import open_channel
from cluster.transports.router_client import RouterClient
from dflash_core.errors import DeadlineExceeded, InvalidRequest, PromptTooLong, Unavailable
from dflash_core.runners.target import TargetRunner
from protos import common_pb2, drafter_pb2, drafter_pb2_grpc, router_pb2, router_pb2_grpc
from tests.cluster.serving import (
    TARGET_SETTINGS,
    check_outputs,
    decode_plainly,
    make_cluster,
    sleep_a_little,
    tiny_request,
)
from tests.cluster.simulated_client import Client
from tests.tiny import TinyPair, make_tiny_pair
from tests.waiting import until


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return make_tiny_pair(Path(tmp_path_factory.mktemp("pair")), num_layers=2, target_layer_ids=(0, 1))


@pytest.fixture(scope="module")
def plain_runner(pair: TinyPair) -> Iterator[TargetRunner]:
    return TargetRunner.load(str(pair.target), None, TARGET_SETTINGS)


def make_requests(seed: int, pair: TinyPair, number: int, **changes: Any) -> list[GenerationRequest]:
    rng = random.Random(seed)
    return [tiny_request(rng, f"r{seed}-{i}", pair.settings.vocab_size, **changes) for i in range(number)]


async def test_same_tokens_as_plain_decoding(pair: TinyPair, plain_runner: TargetRunner) -> None:
    requests = make_requests(1, pair, 12)
    expected = await decode_plainly(plain_runner, requests)
    async with make_cluster(pair) as cluster:
        rng = random.Random(0)
        for request in requests:
            cluster.pool.submit(request, cluster.client)
            await sleep_a_little(rng)
        await check_outputs(cluster.client, expected)
        await cluster.check_nothing_left()
        accepted = [cluster.client.last[r.sequence_id].statistics for r in requests if (r.tree_budget or 1) > 1]
        assert sum(statistics.accepted_tokens for statistics in accepted if statistics is not None) > 20
        assert {"drafter.forward", "target.forward"} <= set(cluster.routers[0].router.timings.stages)


async def test_cancel_frees_blocks_and_sequences_everywhere(pair: TinyPair) -> None:
    async with make_cluster(pair) as cluster:
        rng = random.Random(2)
        for request in make_requests(2, pair, 50, max_tokens=200):
            cluster.pool.submit(request, cluster.client)
            await sleep_a_little(rng)
            cluster.pool.cancel(request.sequence_id)
        await cluster.check_nothing_left()
        assert not cluster.client.last


async def test_a_broken_gateway_stream_releases_its_sequences(pair: TinyPair) -> None:
    async with make_cluster(pair) as cluster:
        async with open_channel(cluster.routers[0].address) as channel:
            client = RouterClient(cluster.routers[0].address, channel)
            run = asyncio.create_task(client.run())
            for request in make_requests(3, pair, 4, max_tokens=200):
                client.submit(request, cluster.client)
            await until(lambda: cluster.targets[0].runner.num_sequences == 4)
        with pytest.raises(Unavailable):
            await run
        assert len(cluster.client.last) == 4
        await cluster.check_nothing_left()


async def test_a_lost_target_stream_is_prefilled_again_elsewhere(pair: TinyPair, plain_runner: TargetRunner) -> None:
    requests = make_requests(4, pair, 4, max_tokens=60)
    expected = await decode_plainly(plain_runner, requests)
    async with make_cluster(pair, num_targets=1) as cluster:
        for request in requests:
            cluster.pool.submit(request, cluster.client)
        await until(lambda: len(cluster.client.tokens) == 4)
        lost = cluster.targets[0]
        await cluster.lose(lost)
        assert not cluster.client.last
        cluster.add_target()
        await check_outputs(cluster.client, expected)
        await cluster.check_nothing_left()


async def test_a_target_that_says_goodbye_is_replaced(pair: TinyPair, plain_runner: TargetRunner) -> None:
    requests = make_requests(5, pair, 3, max_tokens=60)
    expected = await decode_plainly(plain_runner, requests)
    async with make_cluster(pair, num_targets=2) as cluster:
        for request in requests:
            cluster.pool.submit(request, cluster.client)
        await until(lambda: len(cluster.client.tokens) == 3)
        leaving = cluster.targets.pop(0)
        await leaving.agent.drain()
        await check_outputs(cluster.client, expected)
        await cluster.check_nothing_left()


async def test_a_drafter_that_dies_changes_no_token(pair: TinyPair, plain_runner: TargetRunner) -> None:
    requests = make_requests(6, pair, 4, max_tokens=100, tree_budget=8)
    expected = await decode_plainly(plain_runner, requests)
    async with make_cluster(pair, num_drafters=2) as cluster:
        for request in requests:
            cluster.pool.submit(request, cluster.client)
        await until(lambda: len(cluster.client.tokens) == 4)
        dying, staying = cluster.drafters
        await until(lambda: dying.service.num_drafts > 2)
        await cluster.lose(dying)
        drafts = staying.service.num_drafts
        await check_outputs(cluster.client, expected)
        assert staying.service.num_drafts > drafts
        await cluster.check_nothing_left()


def lose_device(*args: object) -> None:
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


async def test_a_target_whose_gpu_is_lost_leads_no_more(pair: TinyPair, plain_runner: TargetRunner) -> None:
    """Its process answers every call with an error: it must not take sequences again and again."""
    requests = make_requests(14, pair, 4, max_tokens=40)
    expected = await decode_plainly(plain_runner, requests)
    async with make_cluster(pair) as cluster:
        for request in requests:
            cluster.pool.submit(request, cluster.client)
        await until(lambda: any(cluster.client.tokens.values()))
        lost = cluster.targets[0]
        lost.runner._pass.run = lose_device  # type: ignore[method-assign, assignment]
        await until(lambda: cluster.routers[0].router.num_targets == 0)
        with pytest.raises(Unavailable, match="has lost its GPU: CUDA error: an illegal memory access"):
            lost.agent.check_health()
        cluster.add_target()
        await check_outputs(cluster.client, expected)
        assert lost.runner.num_sequences == 0
        assert cluster.routers[0].router.num_targets == 1


async def test_a_drafter_whose_gpu_is_lost_says_so_and_changes_no_token(
    pair: TinyPair, plain_runner: TargetRunner
) -> None:
    requests = make_requests(15, pair, 4, max_tokens=40)
    expected = await decode_plainly(plain_runner, requests)
    async with make_cluster(pair) as cluster:
        service = cluster.drafters[0].service
        service.check_health()
        cluster.drafters[0].runner._pass.run = lose_device  # type: ignore[method-assign, assignment]
        for request in requests:
            cluster.pool.submit(request, cluster.client)
        await check_outputs(cluster.client, expected)
        with pytest.raises(Unavailable, match="has lost its GPU: CUDA error: an illegal memory access"):
            service.check_health()


async def test_no_drafter_at_all(pair: TinyPair, plain_runner: TargetRunner) -> None:
    requests = make_requests(7, pair, 3)
    expected = await decode_plainly(plain_runner, requests)
    async with make_cluster(pair, num_drafters=0) as cluster:
        for request in requests:
            cluster.pool.submit(request, cluster.client)
        await check_outputs(cluster.client, expected)
        await cluster.check_nothing_left()


async def test_another_router_takes_over(pair: TinyPair, plain_runner: TargetRunner) -> None:
    requests = make_requests(8, pair, 6, max_tokens=60)
    expected = await decode_plainly(plain_runner, requests)
    async with make_cluster(pair, num_routers=2, num_targets=2) as cluster:
        assert [router.router.num_targets for router in cluster.routers] == [1, 1]
        await until(lambda: [client.is_ready for client in cluster.pool._clients.values()] == [True, True])
        for request in requests:
            cluster.pool.submit(request, cluster.client)
        await until(lambda: len(cluster.client.tokens) == 6)
        assert all(router.router.num_active for router in cluster.routers)
        await cluster.lose(cluster.routers[0])
        await check_outputs(cluster.client, expected)
        await cluster.check_nothing_left()
        # Its target has found the other router: its epoch tells that it lost one.
        await until(lambda: cluster.routers[0].router.num_targets == 2)
        assert sorted(target.agent.epoch for target in cluster.targets) == [0, 1]


async def test_a_draining_router_finishes_what_runs(pair: TinyPair, plain_runner: TargetRunner) -> None:
    requests = make_requests(9, pair, 2, max_tokens=40)
    expected = await decode_plainly(plain_runner, requests)
    async with make_cluster(pair) as cluster:
        for request in requests:
            cluster.pool.submit(request, cluster.client)
        await until(lambda: len(cluster.client.tokens) == 2)
        draining = cluster.routers[0]
        await draining.service.drain(timeout_s=30.0)
        await check_outputs(cluster.client, expected)
        assert not cluster.pool.is_ready
        await cluster.add_router()
        late = make_requests(10, pair, 1)
        cluster.pool.submit(late[0], cluster.client)
        await cluster.lose(draining)
        await check_outputs(cluster.client, await decode_plainly(plain_runner, late))


async def test_errors_cross_the_streams(pair: TinyPair) -> None:
    async with make_cluster(pair) as cluster:
        long = make_requests(11, pair, 1, token_ids=np.ones(600, np.int32), num_prompt_tokens=600)[0]
        cluster.pool.submit(long, cluster.client)
        await cluster.client.wait(long.sequence_id)
        error = cluster.client.last[long.sequence_id].error
        assert isinstance(error, InvalidRequest)
        assert "512" in error.message
        assert not isinstance(error, PromptTooLong)  # only codes travel
        hurried = make_requests(12, pair, 1, max_tokens=400, timeout_ms=30)[0]
        cluster.pool.submit(hurried, cluster.client)
        await cluster.client.wait(hurried.sequence_id)
        assert isinstance(cluster.client.last[hurried.sequence_id].error, DeadlineExceeded)
        async with open_channel(cluster.routers[0].address) as channel:
            client = RouterClient(cluster.routers[0].address, channel)
            run = asyncio.create_task(client.run())
            fine = make_requests(13, pair, 1)[0]
            with pytest.raises(InvalidRequest, match="outside the vocabulary"):
                await anext(client.generate(replace(fine, sequence_id="x", token_ids=-fine.token_ids - 1)))
            events = [event async for event in client.generate(fine)]
            assert events[-1].is_last
            assert client.num_active == 0
            run.cancel()
        await cluster.check_nothing_left()


async def test_nobody_takes_a_request(pair: TinyPair) -> None:
    from cluster.transports.router_pool import RouterPool

    pool, client = RouterPool(failover_timeout_s=0.2), Client()
    first, second = make_requests(14, pair, 2)
    pool.submit(first, client)
    pool.submit(replace(second, sequence_id="hurried", timeout_ms=50), client)
    await client.wait("hurried", first.sequence_id)
    assert isinstance(client.last["hurried"].error, DeadlineExceeded)
    assert isinstance(client.last[first.sequence_id].error, Unavailable)
    await pool.close()


def _key(name: str) -> common_pb2.SequenceKey:
    return common_pb2.SequenceKey(sequence_id=name, attempt=1)


def _blocks(names: list[str], temperature: float) -> drafter_pb2.DraftBlocks:
    once = [1] * len(names)
    return drafter_pb2.DraftBlocks(
        keys=common_pb2.SequenceKeys(sequence_ids=names, attempts=once),
        root_tokens=once,
        context_lens=once,
        samplings=common_pb2.Samplings(
            temperatures=[temperature] * len(names), top_ks=once, top_ps=once, min_ps=once, seeds=once
        ),
        uses_noise=[True] * len(names),
        truncation_penalties=once,
    )


async def test_hostile_messages_are_refused_and_harm_nobody(pair: TinyPair, plain_runner: TargetRunner) -> None:
    requests = make_requests(15, pair, 3, max_tokens=100)
    expected = await decode_plainly(plain_runner, requests)
    odd = common_pb2.Int32Array(data=b"\x01\x02\x03")
    async with make_cluster(pair) as cluster:
        for request in requests:
            cluster.pool.submit(request, cluster.client)
        await until(lambda: len(cluster.client.tokens) == 3)
        router, drafter = cluster.routers[0].address, cluster.drafters[0].address
        async with open_channel(router) as router_channel, open_channel(drafter) as drafter_channel:
            routers = router_pb2_grpc.RouterStub(router_channel)
            drafters = drafter_pb2_grpc.DrafterStub(drafter_channel)
            await _check_refused(routers.Submit, router_pb2.GatewayMessage())
            await _check_refused(routers.Lead, router_pb2.TargetMessage())
            await _check_refused(routers.Lead, router_pb2.TargetMessage(info=router_pb2.TargetInfo(model="empty")))
            for request in (
                drafter_pb2.DraftRequest(releases=[common_pb2.SequenceKey()]),
                drafter_pb2.DraftRequest(blocks=_blocks(["a", "a"], temperature=0.0)),
                drafter_pb2.DraftRequest(blocks=_blocks(["a"], temperature=-1.0)),
            ):
                await _check_refused(drafters.Drafts, request)
            for features in (
                common_pb2.Tensor(dtype="float32", shape=[4, 4], data=b"short"),
                common_pb2.Tensor(dtype="object", shape=[1, 1], data=b"12345678"),
                common_pb2.Tensor(dtype="float32", shape=[2**32 - 1] * 4, data=b""),
                common_pb2.Tensor(dtype="float32", shape=[1, 3], data=bytes(12)),
            ):
                chunk = drafter_pb2.ContextChunk(key=_key("a"), features=features)
                await _check_refused(drafters.AppendContext, drafter_pb2.ContextBatch(chunks=[chunk]))
            # A wrong generation ends with its own failure, and the stream goes on.
            call: Any = routers.Submit()
            generation = router_pb2.Generation(sequence_id="odd", token_ids=odd, num_prompt_tokens=1, max_tokens=1)
            await call.write(router_pb2.GatewayMessage(generation=generation))
            while not (message := await call.read()).HasField("tokens"):
                pass
            assert message.tokens.ends[0].failure.code == "invalid_argument"
            call.cancel()
        await check_outputs(cluster.client, expected)
        await cluster.check_nothing_left()


async def _check_refused(method: Any, message: Any) -> None:
    call = method()
    await call.write(message)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _read_all(call)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()


async def _read_all(call: Any) -> None:
    """The status of a stream comes after its messages only."""
    while await call.read() is not grpc.aio.EOF:
        pass
