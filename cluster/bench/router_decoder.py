"""Our own arms: the router of the cluster over the in-process transports."""

from __future__ import annotations

import asyncio

import numpy as np

from cluster.bench.arms import Cell
from cluster.bench.samples import Decoded, PromptGroup
from cluster.requests import GenerationRequest, GenerationStatistics, TokenEvent
from cluster.router import Router
from cluster.router.clock import now
from cluster.router.timeline import Timeline
from cluster.router.timings import IDLE
from dflash_core.contracts import SamplingParams


class _Client:
    """Keeps so many requests of a group running; their outputs and statistics, and a future for the end of the last.

    The first `num_lead_in` of the requests are the lead-in.
    """

    def __init__(self, router: Router, requests: list[GenerationRequest], num_lead_in: int, concurrency: int) -> None:
        self._router = router
        self._waiting = requests[::-1]
        self._num_lead_in = num_lead_in
        self._places = {request.sequence_id: place for place, request in enumerate(requests)}
        self.outputs: list[list[int]] = [[] for _ in requests]
        self.statistics: dict[int, GenerationStatistics] = {}  # of those that have ended, by place
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.seconds = 0.0  # see `Decoded`
        self.timed_tokens = 0
        self._begin, self._untimed_tokens = now(), 0
        self._is_begun = num_lead_in == 0
        for _ in range(min(concurrency, len(requests))):
            router.submit(self._waiting.pop(), self)

    def put(self, events: list[TokenEvent]) -> None:
        num_ended = 0
        for event in events:
            if event.error is not None and not self.done.done():
                self.done.set_exception(event.error)
            place = self._places[event.sequence_id]
            self.outputs[place] += event.token_ids.tolist()
            if event.statistics is not None:
                self.statistics[place] = event.statistics
                num_ended += 1
        if num_ended > len(self._waiting) and not self.seconds:
            self.seconds = now() - self._begin
            self.timed_tokens = self.num_tokens - self._untimed_tokens
        if not self._is_begun and all(self.outputs[: self._num_lead_in]):
            self._is_begun = True
            self._begin, self._untimed_tokens = now(), self.num_tokens
        for _ in range(min(num_ended, len(self._waiting))):
            self._router.submit(self._waiting.pop(), self)
        if len(self.statistics) == len(self.outputs) and not self.done.done():
            self.done.set_result(None)

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.outputs))


class RouterDecoder:
    """One router with its own strategy and budget. The target behind it may be shared with other arms."""

    def __init__(self, router: Router, eos_token_ids: tuple[int, ...], name: str = "") -> None:
        """`name`: of its sequences on the target, where others decode beside it."""
        self._router = router
        self._eos_token_ids = eos_token_ids
        self._name = name
        self._client: _Client | None = None

    @property
    def num_tokens(self) -> int:
        return 0 if self._client is None else self._client.num_tokens

    async def decode(self, group: PromptGroup, cell: Cell, timeline: Timeline | None) -> Decoded:
        requests = [
            GenerationRequest(
                sequence_id=f"{self._name}{index}",
                token_ids=np.asarray(prompt.token_ids, dtype=np.int32),
                num_prompt_tokens=len(prompt.token_ids),
                max_tokens=prompt.max_tokens,
                sampling=SamplingParams(temperature=cell.temperature, seed=prompt.seed),
                stop_token_ids=self._eos_token_ids,
            )
            for index, prompt in enumerate(group.lead_in + group.prompts)
        ]
        timings = self._router.timings
        timings.reset()
        timings.timeline = timeline
        num_lead_in = len(group.lead_in)
        self._client = client = _Client(self._router, requests, num_lead_in, cell.concurrency)
        try:
            await client.done
        finally:
            self._router.release_client(client)
        # A prefill is a round too, but verifies nothing.
        statistics = [client.statistics[place] for place in range(num_lead_in, len(requests))]
        verified_trees = sum(one.rounds - 1 for one in statistics)
        decoded = Decoded(
            seconds=client.seconds,
            timed_tokens=client.timed_tokens,
            outputs=tuple(map(tuple, client.outputs[num_lead_in:])),
            verified_trees=verified_trees,
            accepted_tokens=sum(one.accepted_tokens for one in statistics),
            tree_nodes=sum(one.tree_nodes for one in statistics),
            rounds=timings.rounds,
            stage_us={name: stage.total_us for name, stage in timings.stages.items() if name != IDLE},
        )
        while any(rounds.has_work(0) for rounds in self._router.rounds):  # releases: not in the next group's time
            await asyncio.sleep(0.001)
        return decoded
