"""A router with simulated pools around it, and what must hold whatever was done to them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from cluster.requests import FinishReason, GenerationRequest
from cluster.router import Router, RouterSettings
from tests.cluster.simulated_client import Client
from tests.cluster.simulated_drafter import Network, SimulatedDrafter
from tests.cluster.simulated_target import SimulatedTarget
from tests.cluster.simulated_text import decode_plainly
from tests.waiting import until


class CheckedRouter(Router):
    """Compares the sums of every target with its sequences whenever somebody may start by them."""

    def place_waiting(self) -> None:
        for link in self._targets.values():
            assert link.num_claimed_blocks == sum(link.claim(sequence) for sequence in link.sequences)
            assert link.num_uncached_tokens == sum(
                len(sequence.token_ids) - max(sequence.cached_len, sequence.num_expected_tokens)
                for sequence in link.sequences
            )
        super().place_waiting()


@dataclass
class World:
    rng: random.Random
    network: Network
    router: Router
    client: Client = field(default_factory=Client)
    targets: list[SimulatedTarget] = field(default_factory=list)
    drafters: list[SimulatedDrafter] = field(default_factory=list)

    def add_target(self, **options: Any) -> SimulatedTarget:
        target = SimulatedTarget(self.network, **options)
        self.targets.append(target)
        self.router.add_target(target)
        return target

    def add_drafter(self, **options: Any) -> SimulatedDrafter:
        drafter = SimulatedDrafter(self.network, **options)
        self.drafters.append(drafter)
        self.router.add_drafter(drafter)
        return drafter

    async def check_same_tokens(self, requests: list[GenerationRequest]) -> None:
        await self.client.wait(*(request.sequence_id for request in requests))
        for request in requests:
            expected = decode_plainly(request)
            assert self.client.tokens[request.sequence_id] == expected
            last = self.client.last[request.sequence_id]
            assert last.error is None
            stopped = bool(expected) and expected[-1] in request.stop_token_ids
            assert last.finish_reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)
            assert last.statistics is not None
            assert last.statistics.output_tokens == len(request.token_ids) - request.num_prompt_tokens + len(expected)

    async def check_nothing_left(self) -> None:
        await until(lambda: not any(target.held for target in self.targets if not target.is_dead))
        await until(lambda: not any(drafter.contexts for drafter in self.drafters if not drafter.is_dead))
        for target in self.targets:
            if not target.is_dead:
                assert target.free_blocks == target.info.num_blocks
        assert self.router.num_active == self.router.num_waiting == self.router.num_running == 0
        for link in self.router._targets.values():
            await until(lambda link=link: link.free_blocks == link.info.num_blocks)
        for drafter_link in self.router._drafters.values():
            assert drafter_link.num_sequences == 0


@asynccontextmanager
async def make_world(seed: int, drop: float = 0.0, delay_s: float = 0.0, **settings: Any) -> AsyncIterator[World]:
    rng = random.Random(seed)
    defaults: dict[str, Any] = {"draft_timeout_ms": 40, "prefill_chunk_tokens": 24, "tree_budget": 8}
    router = CheckedRouter(RouterSettings(**{**defaults, **settings}))
    world = World(rng, Network(rng, drop, delay_s), router)
    try:
        yield world
    finally:
        await router.close()
