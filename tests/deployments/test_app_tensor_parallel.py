"""The application with a target of two ranks: the tokens of one rank, and a target that comes back after losing one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from cluster.transports.authentication import OPEN
from deployments import builder
from deployments.api_keys import ApiKeySource
from deployments.settings import parse_settings
from protos import inference_pb2, inference_pb2_grpc
from tests.deployments.conftest import ServedApplication, free_ports
from tests.waiting import answers, wait

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

NAME = "two-ranks"
PROMPT = "class Stack:\n    def push"
SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 5},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "seed": 6},
]


@dataclass(frozen=True)
class TwoRanks:
    url: str
    grpc_target: str
    target: Path

    def targets(self) -> list[dict[str, Any]]:
        from ray import serve
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        try:
            stats: list[dict[str, Any]] = serve.get_deployment_handle("Target", NAME).broadcast("stats").results()
        except (RayError, RayServeException):  # none runs, or one has just died
            return []
        return stats

    def is_ready(self) -> bool:
        return answers(f"{self.url}/healthz")


@pytest.fixture(scope="module")
def two_ranks(served: ServedApplication) -> Iterator[TwoRanks]:
    """Beside the application that all tests here share."""
    from ray import serve

    (port,) = free_ports(1)
    settings = {
        "target": str(served.target),
        "target.tensor_parallel": 2,
        "target.collective_timeout_s": 10,
        "router.failover_timeout_s": 250,
        "drafter": str(served.drafter),
        "served_model_name": "tiny",
        "tree_budget": 8,
        "data_plane_ports": f"{port}-{port + 200}",
    }
    try:
        serve.run(builder.bind(parse_settings(settings), OPEN, ApiKeySource()), name=NAME, route_prefix=f"/{NAME}")
        application = TwoRanks(f"{served.url}/{NAME}", served.grpc_target, served.target)
        wait(application.is_ready, "a target of two ranks")
        yield application
    finally:
        serve.delete(NAME)


def tokens_of_one_rank(folder: Path, prompt: str) -> list[list[int]]:
    from cluster.engine import LLMInferenceEngine

    with LLMInferenceEngine(str(folder), None, "none") as engine:
        return [engine.generate(prompt, 40, **options).token_ids for options in SAMPLINGS]


def served_tokens(two_ranks: TwoRanks, prompt: str) -> list[list[int]]:
    with grpc.insecure_channel(two_ranks.grpc_target) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        requests = [inference_pb2.GenerateRequest(text=prompt, max_tokens=40, **sampling) for sampling in SAMPLINGS]
        options: dict[str, Any] = {"timeout": 300, "wait_for_ready": True, "metadata": [("application", NAME)]}
        return [list(stub.Complete(request, **options).token_ids) for request in requests]


def test_two_ranks_give_the_tokens_of_one(two_ranks: TwoRanks) -> None:
    assert served_tokens(two_ranks, PROMPT) == tokens_of_one_rank(two_ranks.target, PROMPT)


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGSTOP])
def test_requests_outlive_a_rank(two_ranks: TwoRanks, kind: signal.Signals) -> None:
    """One that ends and one that hangs: requests wait for the next target, and nothing is left of the last one."""
    expected = served_tokens(two_ranks, PROMPT)
    (before,) = two_ranks.targets()
    os.kill(before["rank_pids"][0], kind)
    assert served_tokens(two_ranks, PROMPT) == expected
    (after,) = two_ranks.targets()
    assert after["pid"] != before["pid"]
    gone = [before["pid"], *before["rank_pids"]]
    wait(lambda: not any(map(psutil.pid_exists, gone)), f"the end of processes {gone}")
