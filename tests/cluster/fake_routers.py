"""Routers as a gateway sees them, answered for by the test."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from cluster.requests import EventSink, GenerationRequest, TokenEvent
from cluster.transports.router_pool import RouterPool
from dflash_core.contracts import SamplingParams, TargetInfo, TokenIds
from dflash_core.errors import DFlashError


@dataclass(eq=False)
class FakeRouter:
    """A router that remembers what it was sent; the test answers in its place."""

    address: str
    num_active: int = 0
    is_ready: bool = True
    is_draining: bool = False
    target_info: TargetInfo | None = None
    taken: dict[str, tuple[GenerationRequest, EventSink]] = field(default_factory=dict)

    def submit(self, request: GenerationRequest, sink: EventSink) -> None:
        self.num_active += 1
        self.taken[request.sequence_id] = (request, sink)

    def cancel(self, sequence_id: str) -> None:
        if self.taken.pop(sequence_id, None) is not None:
            self.num_active -= 1

    def answer(self, sequence_id: str, token_ids: list[int], error: DFlashError | None = None) -> None:
        """Tokens without an error; or an error, which ends it here."""
        _, sink = self.taken[sequence_id]
        if error is not None:
            self.cancel(sequence_id)
        sink.put([TokenEvent(sequence_id, np.asarray(token_ids, np.int32), error=error)])


def prompt_of(number: int, length: int = 100) -> TokenIds:
    return np.random.default_rng(number).integers(0, 1000, length).astype(np.int32)


def request_of(name: str, prompt: TokenIds) -> GenerationRequest:
    return GenerationRequest(name, prompt, len(prompt), 20, SamplingParams())


def pool_over(*routers: FakeRouter) -> RouterPool:
    pool = RouterPool(failover_timeout_s=30.0)
    pool._clients = {router.address: router for router in routers}  # type: ignore[misc]
    return pool
