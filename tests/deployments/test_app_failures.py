"""Replicas of every kind are killed, or get stuck, while clients read streams over HTTP and gRPC through Ray Serve."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import inference_pb2, inference_pb2_grpc
from tests.deployments.conftest import ServedApplication

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

PROMPTS = ["def add(left, right):\n", "class Stack:\n    def push", "return self.items.pop()", "x"]
MAX_TOKENS = 300
STREAM_TIMEOUT_S = 120.0


@pytest.fixture(autouse=True)
def whole(served: ServedApplication) -> None:
    """Whatever died before is there again."""
    served.wait_until_ready()


def _fields(number: int) -> dict[str, Any]:
    return {"max_tokens": MAX_TOKENS, "temperature": float(number % 2), "seed": number}


async def _http_text(client: httpx.AsyncClient, url: str, number: int, pieces: list[str]) -> None:
    body = {"prompt": PROMPTS[number % 4], "stream": True, **_fields(number)}
    async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                pieces.append(event["choices"][0]["text"])


async def _grpc_text(stub: Any, number: int, pieces: list[str]) -> None:
    request = inference_pb2.GenerateRequest(text=PROMPTS[number % 4], **_fields(number))
    async for message in stub.Generate(request, timeout=STREAM_TIMEOUT_S):
        pieces.append(message.text)


class Streams:
    """Half of them over HTTP, half over gRPC; each also knows what it must say."""

    def __init__(self, served: ServedApplication, number: int = 8) -> None:
        self._served = served
        self.pieces: list[list[str]] = [[] for _ in range(number)]

    async def run_all(self) -> list[str]:
        self.pieces = [[] for _ in self.pieces]
        async with (
            httpx.AsyncClient(timeout=STREAM_TIMEOUT_S) as client,
            grpc.aio.insecure_channel(self._served.grpc_target) as channel,
            asyncio.TaskGroup() as group,
        ):
            stub = inference_pb2_grpc.InferenceStub(channel)
            for number, pieces in enumerate(self.pieces):
                if number % 2:
                    group.create_task(_grpc_text(stub, number, pieces))
                else:
                    group.create_task(_http_text(client, self._served.url, number, pieces))
        return ["".join(pieces) for pieces in self.pieces]

    async def wait_for_first_tokens(self) -> None:
        async with asyncio.timeout(STREAM_TIMEOUT_S):
            while not all(self.pieces):
                await asyncio.sleep(0.005)


async def _wait(condition: Any, what: str, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not await asyncio.to_thread(_holds, condition):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        await asyncio.sleep(0.2)


def _holds(condition: Any) -> bool:
    try:
        return bool(condition())
    except Exception:  # the listing of a pool fails once after a death, and while it is empty
        return False


def _pids(served: ServedApplication, *deployments: str) -> dict[str, list[int]]:
    return {name: sorted(replica["pid"] for replica in served.stats(name)) for name in deployments}


async def _is_whole(served: ServedApplication) -> None:
    await _wait(
        lambda: all(r["num_targets"] == r["num_drafters"] == 1 for r in served.stats("Router")), "target and drafter"
    )
    await _wait(lambda: all(t["num_sequences"] == 0 for t in served.stats("Target")), "no sequence at the target")
    await _wait(lambda: all(d["num_sequences"] == 0 for d in served.stats("Drafter")), "no context at the drafter")


@pytest.mark.parametrize("deployment", ["Drafter", "Target", "Router"])
async def test_streams_outlive_the_replicas_behind_the_gateway(served: ServedApplication, deployment: str) -> None:
    streams = Streams(served)
    expected = await streams.run_all()
    ((victim,),) = (await asyncio.to_thread(_pids, served, deployment)).values()
    running = asyncio.create_task(streams.run_all())
    await asyncio.sleep(0)
    await streams.wait_for_first_tokens()
    os.kill(victim, signal.SIGKILL)
    assert await running == expected
    await _wait(lambda: served.stats(deployment)[0]["pid"] != victim, f"a new {deployment}")
    await _is_whole(served)


async def test_a_killed_gateway_breaks_its_connections_and_leaves_nothing(served: ServedApplication) -> None:
    streams = Streams(served)
    expected = await streams.run_all()
    (victim,) = (await asyncio.to_thread(_pids, served, "Gateway"))["Gateway"]
    running = asyncio.create_task(streams.run_all())
    await asyncio.sleep(0)
    await streams.wait_for_first_tokens()
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(ExceptionGroup):
        await running
    await _wait(lambda: served.stats("Gateway")[0]["pid"] != victim, "a new gateway")
    await _is_whole(served)
    await asyncio.to_thread(served.wait_until_ready)
    assert await streams.run_all() == expected


@pytest.fixture
async def watched(served: ServedApplication) -> AsyncIterator[list[int]]:
    """Every status that `Watch` of grpc.health.v1 tells from now on."""
    statuses: list[int] = []

    async def watch(channel: grpc.aio.Channel) -> None:
        stub = health_pb2_grpc.HealthStub(channel)
        async for answer in stub.Watch(health_pb2.HealthCheckRequest()):
            statuses.append(answer.status)

    async with grpc.aio.insecure_channel(served.grpc_target) as channel:
        task = asyncio.create_task(watch(channel))
        yield statuses
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_readiness_says_whether_a_round_can_run(served: ServedApplication, watched: list[int]) -> None:
    """While the target is away: 503 and NOT_SERVING, a request waits; then both come back by themselves."""
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    async with asyncio.timeout(60):
        while watched[-1:] != [serving]:
            await asyncio.sleep(0.05)
    others = await asyncio.to_thread(_pids, served, "Gateway", "Router", "Drafter")
    (victim,) = (await asyncio.to_thread(_pids, served, "Target"))["Target"]
    os.kill(victim, signal.SIGKILL)
    async with httpx.AsyncClient(timeout=60) as client, asyncio.timeout(120):
        while (answer := await client.get(f"{served.url}/healthz")).status_code == 200:
            await asyncio.sleep(0.02)
        assert answer.status_code == 503
        body = {"prompt": PROMPTS[0], "max_tokens": 8, "temperature": 0}
        waiting = await client.post(f"{served.url}/v1/completions", json=body, timeout=120)
        assert waiting.status_code == 200, waiting.text
        while watched[-2:] != [not_serving, serving]:
            await asyncio.sleep(0.05)
    assert watched == [serving, not_serving, serving]
    assert await asyncio.to_thread(_pids, served, "Gateway", "Router", "Drafter") == others
