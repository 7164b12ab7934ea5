"""Pools apart: drafters and targets on nodes of their own, found by label and resource; rolling updates of each pool as
`serve deploy` does them, and pools that grow and shrink with the load: all under streams that notice nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Set
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos import inference_pb2, inference_pb2_grpc
from tests.deployments.conftest import free_ports, serve_environment
from tests.deployments.pools import ROOT, Pools
from tests.tiny import make_tiny_pair
from tests.waiting import wait

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

PROMPTS = ["def add(left, right):\n", "class Stack:\n    def push", "return self.items.pop()", "x"]
NUM_STREAMS = 6
WAIT_S = 300.0


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pools]:
    from ray.cluster_utils import Cluster

    http_port, grpc_port, data_port, dashboard_port = free_ports(4)
    pair = make_tiny_pair(tmp_path_factory.mktemp("pair"))
    config = {
        "proxy_location": "HeadOnly",  # all nodes are this machine, with its ports
        "http_options": {"host": "127.0.0.1", "port": http_port},
        "grpc_options": {
            "port": grpc_port,
            "grpc_servicer_functions": ["deployments.grpc_api.add_public_services"],
        },
        "applications": [
            {
                "name": "default",
                "route_prefix": "/",
                "import_path": "deployments:app",
                "args": {
                    "target": {
                        "model": str(pair.target),
                        "num_replicas": 2,
                        "labels": {"example.com/pool": "targets"},
                    },
                    "drafter": {
                        "model": str(pair.drafter),
                        "max_replicas": 2,
                        "sequences_per_replica": NUM_STREAMS / 2,
                        "scale_up_after_s": 0,
                        "resources": {"drafter_pool": 1},
                    },
                    "router": {"num_replicas": 2},
                    "gateway": {"num_replicas": 2, "resources": {"gateway_pool": 1}, "drain_timeout_s": 120},
                    "served_model_name": "tiny",
                    "tree_budget": 16,
                    "data_plane_ports": f"{data_port}-{data_port + 200}",
                },
                "deployments": [
                    {
                        "name": "Target",
                        "ray_actor_options": {"num_cpus": 0.4, "label_selector": {"example.com/pool": "targets"}},
                    },
                    {"name": "Drafter", "ray_actor_options": {"num_cpus": 0.3, "resources": {"drafter_pool": 1}}},
                    {"name": "Router", "ray_actor_options": {"num_cpus": 0.1}},
                    {"name": "Gateway", "ray_actor_options": {"num_cpus": 0.1, "resources": {"gateway_pool": 1}}},
                ],
            }
        ],
    }
    with pytest.MonkeyPatch.context() as patch:
        variables = serve_environment() | {
            "PYTHONPATH": str(ROOT),
            "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
            # HAProxy must have left a gateway before its gRPC server stops, which cancels streams that begin meanwhile.
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
        }
        for name, value in variables.items():
            patch.setenv(name, value)
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 2,
                # Ray Serve gives ports of a node to gateways: on two of these nodes they would be the same.
                "resources": {"gateway_pool": 4},
                "include_dashboard": True,
                "dashboard_port": dashboard_port,
            },
        )
        try:
            nodes = {
                "drafters": cluster.add_node(num_cpus=2, resources={"drafter_pool": 3}),
                "targets": cluster.add_node(num_cpus=2, labels={"example.com/pool": "targets"}),
            }
            application = Pools(
                tmp_path_factory.mktemp("config") / "serve.yaml",
                config,
                f"http://127.0.0.1:{dashboard_port}",
                {pool: node.node_id for pool, node in nodes.items()},
            )
            application.wait_for_dashboard(Path(cluster.head_node.get_logs_dir_path()))
            application.deploy()
            wait(application.is_ready, "the application")
            yield application
        finally:
            cluster.shutdown()


async def _generate(stub: Any, number: int) -> list[int]:
    request = inference_pb2.GenerateRequest(
        text=PROMPTS[number % 4], max_tokens=200, temperature=float(number % 2), seed=number
    )
    token_ids: list[int] = []
    async for message in stub.Generate(request, timeout=WAIT_S):
        token_ids += message.token_ids
    return token_ids


@asynccontextmanager
async def _streams(pools: Pools, count: int = NUM_STREAMS) -> AsyncIterator[asyncio.Event]:
    """As many streams at any time, each again and again, until the body ends: always the tokens of the first time."""
    has_ended = asyncio.Event()

    async def repeat(stub: Any, number: int, expected: list[int]) -> None:
        while not has_ended.is_set():
            assert await _generate(stub, number) == expected, number

    async with grpc.aio.insecure_channel(pools.grpc_target) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        expected = [await _generate(stub, number) for number in range(count)]
        assert all(expected)
        async with asyncio.TaskGroup() as group:
            for number, token_ids in enumerate(expected):
                group.create_task(repeat(stub, number, token_ids))
            try:
                yield has_ended
            finally:
                has_ended.set()


def test_replicas_are_on_the_nodes_of_their_pools(pools: Pools) -> None:
    wait(lambda: [r.is_running for r in pools.replicas("Target")] == [True] * 2, "two targets")
    assert {r.node_id for r in pools.replicas("Target")} == {pools.node_ids["targets"]}
    assert {r.node_id for r in pools.replicas("Drafter")} == {pools.node_ids["drafters"]}
    with grpc.insecure_channel(pools.grpc_target) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        request = inference_pb2.GenerateRequest(text=PROMPTS[0], max_tokens=40)

        def is_drafted() -> bool:
            answer = stub.Complete(request, timeout=WAIT_S)
            return len(answer.token_ids) > answer.statistics.rounds

        wait(is_drafted, "drafts from the other node, some of them accepted", timeout_s=30.0)


async def _wait_for_two(pools: Pools, deployment: str, before: Set[str] = frozenset()) -> set[str]:
    """Until two replicas run, none of them one of those before."""

    def are_there() -> bool:
        replicas = pools.replicas(deployment)
        ids = {replica.replica_id for replica in replicas}
        return len(ids) == 2 and all(replica.is_running for replica in replicas) and not before & ids

    await asyncio.to_thread(wait, are_there, f"two replicas of {deployment}")
    return {replica.replica_id for replica in await asyncio.to_thread(pools.replicas, deployment)}


@pytest.mark.parametrize(
    ("deployment", "num_cpus"), [("Drafter", 0.31), ("Target", 0.41), ("Router", 0.11), ("Gateway", 0.11)]
)
async def test_a_rolling_update_drops_nothing(pools: Pools, deployment: str, num_cpus: float) -> None:
    async with _streams(pools):
        # The drafter pool has one replica until the load is noticed.
        before = await _wait_for_two(pools, deployment)
        await asyncio.to_thread(pools.deploy, deployment, num_cpus=num_cpus)
        await _wait_for_two(pools, deployment, before)


@pytest.mark.parametrize(
    ("deployment", "setting"), [("Drafter", "num_blocks"), ("Target", "num_blocks"), ("Router", "max_waiting")]
)
async def test_a_changed_user_config_starts_replicas_anew_and_drops_nothing(
    pools: Pools, deployment: str, setting: str
) -> None:
    async with _streams(pools):
        before = await _wait_for_two(pools, deployment)
        await asyncio.to_thread(pools.deploy, deployment, user_config={setting: 500})
        await asyncio.to_thread(wait, lambda: not pools.is_healthy(deployment), f"{deployment} to change")
        await asyncio.to_thread(wait, lambda: pools.is_healthy(deployment), f"{deployment} to have changed")
        assert await _wait_for_two(pools, deployment) == before


async def test_every_pool_follows_the_load(pools: Pools) -> None:
    """From one replica to two and back, while a stream goes on before, meanwhile and after."""
    automatic = {"max_replicas": 2, "scale_up_after_s": 0, "scale_down_after_s": 2}
    pools.set_pool("target", **automatic, sequences_per_replica=NUM_STREAMS / 2)
    pools.set_pool("drafter", **automatic, sequences_per_replica=NUM_STREAMS / 2)
    pools.set_pool("router", **automatic, rounds_per_replica=1)
    await asyncio.to_thread(pools.deploy)

    async def wait_for(count: int) -> None:
        for deployment in ("Target", "Drafter", "Router"):

            def are_there(deployment: str = deployment) -> bool:
                return [replica.is_running for replica in pools.replicas(deployment)] == [True] * count

            await asyncio.to_thread(wait, are_there, f"{count} of {deployment}")

    await wait_for(1)
    await asyncio.to_thread(wait, pools.is_ready, "the application")
    async with _streams(pools, 1):
        async with _streams(pools):
            await wait_for(2)
        await wait_for(1)
