"""The application with a target of two ranks: the tokens of one rank, and a target that comes back after losing one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest

from protos import inference_pb2, inference_pb2_grpc
from tests.deployments.conftest import free_ports
from tests.tiny import TinyPair, make_tiny_pair

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

PROMPT = "class Stack:\n    def push"
SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 5},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "seed": 6},
]


@dataclass(frozen=True)
class Served:
    url: str
    grpc_target: str
    pair: TinyPair

    def targets(self) -> list[dict[str, Any]]:
        from ray import serve
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        try:
            stats: list[dict[str, Any]] = (
                serve.get_deployment_handle("Target", "two-ranks").broadcast("stats").results()
            )
        except (RayError, RayServeException):  # none runs, or one has just died
            return []
        return stats

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz", timeout=5.0).status_code == 200
        except httpx.TransportError:
            return False


def wait(condition: Callable[[], bool], what: str, timeout_s: float = 240.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s} s")
        time.sleep(0.2)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    import ray
    from ray import serve

    from deployments import app

    http_port, grpc_port, data_port = free_ports(3)
    pair = make_tiny_pair(tmp_path_factory.mktemp("pair"))
    ray.init(address="local", num_cpus=4, namespace="serve", include_dashboard=False, log_to_driver=False)
    try:
        serve.run(
            app(
                {
                    "target": str(pair.target),
                    "target.tensor_parallel": 2,
                    "target.collective_timeout_s": 10,
                    "router.failover_timeout_s": 250,
                    "drafter": str(pair.drafter),
                    "tree_budget": 8,
                    "http_port": http_port,
                    "grpc_port": grpc_port,
                    "data_plane_ports": f"{data_port}-{data_port + 200}",
                }
            ),
            name="two-ranks",
        )
        served = Served(f"http://127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}", pair)
        wait(served.is_ready, "a target of two ranks")
        yield served
    finally:
        serve.shutdown()
        ray.shutdown()


def tokens_of_one_rank(folder: Path, prompt: str) -> list[list[int]]:
    from cluster.engine import LLMInferenceEngine

    with LLMInferenceEngine(str(folder), None, "none") as engine:
        return [engine.generate(prompt, 40, **options).token_ids for options in SAMPLINGS]


def served_tokens(served: Served, prompt: str) -> list[list[int]]:
    with grpc.insecure_channel(served.grpc_target) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        requests = [inference_pb2.GenerateRequest(text=prompt, max_tokens=40, **options) for options in SAMPLINGS]
        return [list(stub.Complete(request, timeout=300, wait_for_ready=True).token_ids) for request in requests]


def test_two_ranks_give_the_tokens_of_one(two_ranks: Served) -> None:
    assert served_tokens(two_ranks, PROMPT) == tokens_of_one_rank(two_ranks.pair.target, PROMPT)


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGSTOP])
def test_requests_outlive_a_rank(two_ranks: Served, kind: signal.Signals) -> None:
    """One that ends and one that hangs: requests wait for the next target, and nothing is left of the last one."""
    expected = served_tokens(two_ranks, PROMPT)
    (before,) = two_ranks.targets()
    os.kill(before["rank_pids"][0], kind)
    assert served_tokens(two_ranks, PROMPT) == expected
    (after,) = two_ranks.targets()
    assert after["pid"] != before["pid"]
    gone = [before["pid"], *before["rank_pids"]]
    wait(lambda: not any(map(psutil.pid_exists, gone)), f"the end of processes {gone}")
