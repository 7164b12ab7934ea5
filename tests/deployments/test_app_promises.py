"""What the running application promises: the tokens of plain decoding, everything freed on cancellation, no torch in
the processes that serve, and replicas of every kind that come back."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest

from protos import inference_pb2, inference_pb2_grpc
from tests.deployments.conftest import ServedApplication
from tests.waiting import wait

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

PROMPTS = ["def add(left, right):\n", "class Stack:\n    def push", "return self.items.pop()", "x"]


@pytest.fixture(scope="module")
def stub(served: ServedApplication) -> Iterator[Any]:
    with grpc.insecure_channel(served.grpc_target) as channel:
        yield inference_pb2_grpc.InferenceStub(channel)


def _tokens(stub: Any, prompt: str, **fields: Any) -> list[int]:
    request = inference_pb2.GenerateRequest(text=prompt, **{"max_tokens": 40, **fields})
    return list(stub.Complete(request, timeout=120).token_ids)


def _is_idle(served: ServedApplication) -> bool:
    (target,), (router,) = served.stats("Target"), served.stats("Router")
    gateways, drafters = served.stats("Gateway"), served.stats("Drafter")
    return (
        target["num_sequences"] == 0
        and target["free_blocks"] == target["num_blocks"]
        and router["num_running"] == router["num_waiting"] == 0
        and all(drafter["num_sequences"] == 0 for drafter in drafters)
        and all(gateway["open_outputs"] == 0 for gateway in gateways)
    )


def test_greedy_output_is_that_of_transformers_for_every_budget(served: ServedApplication, stub: Any) -> None:
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(served.target, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(served.target / "tokenizer.json"))
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt).ids
        with torch.inference_mode():
            output = model.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False)
        expected = output[0, len(ids) :].tolist()
        for budget in (0, 1, 7, 64):
            assert _tokens(stub, prompt, temperature=0.0, tree_budget=budget) == expected


async def test_fifty_prompts_give_the_tokens_of_plain_decoding(served: ServedApplication) -> None:
    """Alone and plainly first; then with every budget, all together in random order, so that any may share a round."""
    rng = random.Random(11)
    plain = []
    for _ in range(50):
        prompt = inference_pb2.TokenIds(ids=[rng.randrange(2, 300) for _ in range(rng.randint(1, 40))])
        for temperature in (0.0, 0.7, 1.0):
            plain.append(
                inference_pb2.GenerateRequest(
                    token_ids=prompt,
                    max_tokens=rng.randint(1, 20),
                    temperature=temperature,
                    seed=rng.randrange(2**64),
                    top_k=rng.choice([0, 0, 20]),
                    top_p=rng.choice([1.0, 1.0, 0.8]),
                    tree_budget=0,
                )
            )
    async with grpc.aio.insecure_channel(served.grpc_target) as channel:
        complete = inference_pb2_grpc.InferenceStub(channel).Complete
        expected = [list((await complete(request, timeout=60)).token_ids) for request in plain]
        at_a_time = asyncio.Semaphore(40)

        async def check(number: int, budget: int) -> int:
            request = inference_pb2.GenerateRequest()
            request.CopyFrom(plain[number])
            request.tree_budget = budget
            async with at_a_time:
                answer = await complete(request, timeout=120)
            assert list(answer.token_ids) == expected[number], (number, budget)
            return len(answer.token_ids) - answer.statistics.rounds

        cases = [(number, budget) for number in range(len(plain)) for budget in (0, 1, 7, 32, 64)]
        rng.shuffle(cases)
        saved = await asyncio.gather(*[check(number, budget) for number, budget in cases])
    assert sum(saved) > 100  # the test says something only where drafts are accepted


async def test_fifty_http_disconnects_leave_nothing(served: ServedApplication, stub: Any) -> None:
    """Streams and whole answers alike: none of them is decoded to its end once its client has left."""
    long_prompts = [prompt for prompt in PROMPTS if len(_tokens(stub, prompt, temperature=0.0, max_tokens=450)) == 450]
    assert long_prompts

    async def start_and_leave(client: httpx.AsyncClient, number: int) -> None:
        prompt = long_prompts[number % len(long_prompts)]
        body = {"prompt": prompt, "max_tokens": 450, "temperature": 0, "stream": number % 2 == 0}
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05 + 0.02 * (number % 10)):
                async with client.stream("POST", f"{served.url}/v1/completions", json=body) as response:
                    async for _ in response.aiter_bytes():
                        pass

    (before,) = await asyncio.to_thread(served.stats, "Gateway")
    async with httpx.AsyncClient(timeout=60) as client:
        await asyncio.gather(*[start_and_leave(client, number) for number in range(50)])
    await asyncio.to_thread(wait, lambda: _is_idle(served), "everything free after 50 disconnects")
    (after,) = await asyncio.to_thread(served.stats, "Gateway")
    assert after["finished_outputs"] == before["finished_outputs"]


async def test_fifty_grpc_cancels_leave_nothing(served: ServedApplication) -> None:
    async with grpc.aio.insecure_channel(served.grpc_target) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)

        async def start_and_cancel(number: int) -> None:
            request = inference_pb2.GenerateRequest(text=PROMPTS[number % 4], max_tokens=480, seed=number)
            call = (stub.Generate if number % 2 else stub.Complete)(request, timeout=120)
            await asyncio.sleep(0.02 * (number % 10))
            call.cancel()

        await asyncio.gather(*[start_and_cancel(number) for number in range(50)])
        await asyncio.to_thread(wait, lambda: _is_idle(served), "everything free after 50 cancels")


def test_gateway_and_router_import_no_torch(served: ServedApplication) -> None:
    for deployment in ("Gateway", "Router"):
        assert [replica["imports_torch"] for replica in served.stats(deployment)] == [False]


@pytest.mark.parametrize("deployment", ["Drafter", "Target", "Router", "Gateway"])
def test_a_killed_replica_comes_back(served: ServedApplication, stub: Any, deployment: str) -> None:
    expected = _tokens(stub, PROMPTS[0], temperature=1.0, seed=3)
    (before,) = served.stats(deployment)
    os.kill(before["pid"], signal.SIGKILL)

    def is_replaced() -> bool:
        try:
            return [replica["pid"] for replica in served.stats(deployment)] not in ([], [before["pid"]])
        except Exception:  # the listing of a pool fails once after a death, and while it is empty
            return False

    wait(is_replaced, f"a new {deployment}", timeout_s=120)
    served.wait_until_ready()
    answer = None
    deadline = time.monotonic() + 120
    while answer is None:
        try:
            answer = _tokens(stub, PROMPTS[0], temperature=1.0, seed=3)
        except grpc.RpcError as error:  # the proxy may still hold the replica that died
            if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    assert answer == expected
    wait(lambda: _has_a_drafter(served), "speculation again", timeout_s=60)


def _has_a_drafter(served: ServedApplication) -> bool:
    return all(router["num_targets"] == 1 and router["num_drafters"] == 1 for router in served.stats("Router"))
