"""A whole cluster on localhost sockets, in one process: routers, drafters and targets with real, tiny models."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cluster.requests import FinishReason, GenerationRequest
from cluster.router import Router, RouterSettings
from cluster.transports.authentication import OPEN, DataPlaneSecurity
from cluster.transports.drafter_service import DrafterService
from cluster.transports.grpc_drafter import DrafterDialer
from cluster.transports.grpc_options import RunningServer, start_server
from cluster.transports.in_process import InProcessContextSink, InProcessDrafter, InProcessTarget
from cluster.transports.router_pool import RouterPool
from cluster.transports.router_service import RouterService
from cluster.transports.target_agent import TargetAgent
from dflash_core.contracts import SamplingParams
from dflash_core.runners.drafter import DrafterRunner
from dflash_core.runners.settings import DrafterSettings, TargetSettings
from dflash_core.runners.target import TargetRunner
from tests.cluster.simulated_client import Client
from tests.tiny import TinyPair
from tests.waiting import until

TARGET_SETTINGS = TargetSettings(device="cpu", dtype="float32", num_blocks=256, max_rows=256, max_tree_rows=128)
DRAFTER_SETTINGS = DrafterSettings(device="cpu", dtype="float32", num_blocks=256)


def add_models(router: Router, runner: TargetRunner, drafter: DrafterRunner, executor: Executor) -> None:
    """Both in this process, on one thread."""
    in_process = InProcessDrafter(drafter, executor)
    router.add_target(InProcessTarget(runner, InProcessContextSink(in_process), executor))
    router.add_drafter(in_process)


@dataclass
class RouterHost:
    router: Router
    service: RouterService
    running: RunningServer
    dialer: DrafterDialer

    @property
    def address(self) -> str:
        return self.running.address

    async def kill(self) -> None:
        await self.running.stop()
        await self.dialer.close()
        await self.router.close()


@dataclass
class DrafterHost:
    runner: DrafterRunner
    service: DrafterService
    running: RunningServer

    @property
    def address(self) -> str:
        return self.running.address

    async def kill(self) -> None:
        await self.running.stop()
        await self.service.close()


@dataclass
class TargetHost:
    runner: TargetRunner
    agent: TargetAgent

    async def kill(self) -> None:
        await self.agent.close()


@dataclass
class Cluster:
    pair: TinyPair
    target_settings: TargetSettings = TARGET_SETTINGS
    routers: list[RouterHost] = field(default_factory=list)
    drafters: list[DrafterHost] = field(default_factory=list)
    targets: list[TargetHost] = field(default_factory=list)
    pool: RouterPool = field(default_factory=RouterPool)
    client: Client = field(default_factory=Client)
    security: DataPlaneSecurity = OPEN

    async def add_router(self, **options: Any) -> RouterHost:
        settings: dict[str, Any] = {"tree_budget": 12, "prefill_chunk_tokens": 32, "draft_timeout_ms": 60_000}
        router = Router(RouterSettings(**{**settings, **options}))
        service = RouterService(router, max_targets=lambda: -(-len(self.targets) // len(self.routers)))
        running = await start_server(service.register, security=self.security)
        host = RouterHost(router, service, running, DrafterDialer(router, self.security))
        self.routers.append(host)
        self._list()
        return host

    async def add_drafter(self) -> DrafterHost:
        runner = DrafterRunner.load(str(self.pair.drafter), str(self.pair.target), DRAFTER_SETTINGS)
        service = DrafterService(runner)
        host = DrafterHost(runner, service, await start_server(service.register, security=self.security))
        self.drafters.append(host)
        self._list()
        await until(lambda: all(router.router.num_drafters == len(self.drafters) for router in self.routers))
        return host

    def add_target(self) -> TargetHost:
        runner = TargetRunner.load(str(self.pair.target), str(self.pair.drafter), self.target_settings)
        agent = TargetAgent(runner, lambda: [router.address for router in self.routers], security=self.security)
        host = TargetHost(runner, agent)
        self.targets.append(host)
        agent.start()
        return host

    async def lose(self, host: RouterHost | DrafterHost | TargetHost) -> None:
        for hosts in (self.routers, self.drafters, self.targets):
            if host in hosts:
                hosts.remove(host)  # type: ignore[arg-type]
        await host.kill()
        self._list()

    def _list(self) -> None:
        self.pool.set_endpoints([router.address for router in self.routers])
        for router in self.routers:
            router.dialer.set_endpoints([drafter.address for drafter in self.drafters])

    async def check_nothing_left(self) -> None:
        # What a client cancelled may be on its way to its router still.
        await until(lambda: not any(router.router.num_active for router in self.routers))
        # Both at once: the model's thread may be between taking blocks and counting their sequence.
        await until(lambda: not any(target.runner.num_sequences or _held_blocks(target) for target in self.targets))
        await until(lambda: not any(drafter.runner.num_sequences for drafter in self.drafters))
        for drafter in self.drafters:
            assert drafter.service.num_sequences == 0
        assert self.pool.num_active == 0

    async def close(self) -> None:
        await self.pool.close()
        for host in (*self.targets, *self.drafters, *self.routers):
            await host.kill()


@asynccontextmanager
async def make_cluster(
    pair: TinyPair,
    num_routers: int = 1,
    num_drafters: int = 1,
    num_targets: int = 1,
    target_settings: TargetSettings = TARGET_SETTINGS,
    security: DataPlaneSecurity = OPEN,
    **options: Any,
) -> AsyncIterator[Cluster]:
    cluster = Cluster(pair, target_settings, security=security, pool=RouterPool(security=security))
    try:
        for _ in range(num_routers):
            await cluster.add_router(**options)
        for _ in range(num_drafters):
            await cluster.add_drafter()
        for _ in range(num_targets):
            cluster.add_target()
        await until(lambda: sum(router.router.num_targets for router in cluster.routers) == num_targets)
        await until(lambda: cluster.pool.is_ready)
        yield cluster
    finally:
        await cluster.close()


def tiny_request(rng: random.Random, sequence_id: str, vocab_size: int, **changes: Any) -> GenerationRequest:
    num_prompt_tokens = rng.randint(1, 50)
    values: dict[str, Any] = {
        "sequence_id": sequence_id,
        "token_ids": np.asarray([rng.randrange(vocab_size) for _ in range(num_prompt_tokens)], np.int32),
        "num_prompt_tokens": num_prompt_tokens,
        "max_tokens": rng.randint(1, 32),
        "sampling": SamplingParams(temperature=rng.choice([0.0, 0.7, 1.0]), seed=rng.randrange(2**64)),
        "tree_budget": rng.choice([None, 0, 1, 7, 32]),
    }
    values.update(changes)
    return GenerationRequest(**values)


async def decode_plainly(runner: TargetRunner, requests: list[GenerationRequest]) -> dict[str, list[int]]:
    """One sequence at a time, one token at a time, straight on a runner: no router, no drafter, no tree."""
    from dflash_core.contracts import DraftTree, Prefill, RoundRequest, SequenceKey, TreeRows

    outputs: dict[str, list[int]] = {}
    for request in requests:
        key = SequenceKey(f"plain-{request.sequence_id}", 1)
        end = len(request.token_ids)
        prefill = Prefill(key, request.token_ids, 0, True, request.num_prompt_tokens, request.sampling)
        tokens = [runner.run_round(RoundRequest(1, prefills=(prefill,))).result.outcomes[0].bonus_token]
        num_wanted = request.max_tokens - (end - request.num_prompt_tokens)
        while len(tokens) < num_wanted and tokens[-1] not in request.stop_token_ids:
            root = DraftTree(np.asarray(tokens[-1:], np.int32), np.zeros(1, np.int32))
            rows = TreeRows(key, end + len(tokens) - 1, root)
            tokens.append(runner.run_round(RoundRequest(2, trees=(rows,))).result.outcomes[0].bonus_token)
        runner.run_round(RoundRequest(3, releases=(key,)))
        outputs[request.sequence_id] = tokens
    return outputs


async def check_outputs(client: Client, expected: dict[str, list[int]], timeout_s: float = 60.0) -> None:
    await client.wait(*expected, timeout_s=timeout_s)
    for sequence_id, tokens in expected.items():
        last = client.last[sequence_id]
        assert last.error is None, last.error
        assert client.tokens[sequence_id] == tokens
        assert last.finish_reason in FinishReason


async def decode_again(cluster: Cluster, requests: list[GenerationRequest], expected: dict[str, list[int]]) -> None:
    """The same requests once more, as new sequences: for tests that need something to have happened."""
    turn = len(cluster.client.tokens)
    for request in requests:
        cluster.pool.submit(replace(request, sequence_id=f"{request.sequence_id}-{turn}"), cluster.client)
    again = {f"{sequence_id}-{turn}": tokens for sequence_id, tokens in expected.items()}
    await check_outputs(cluster.client, again)


async def sleep_a_little(rng: random.Random) -> None:
    await asyncio.sleep(rng.random() * 0.02)


def _held_blocks(target: TargetHost) -> int:
    return target.runner.info.num_blocks - target.runner.free_blocks
