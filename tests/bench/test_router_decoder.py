"""What of a group is timed, seen at a router whose events the test hands out itself."""

from __future__ import annotations

import asyncio
from typing import cast

import numpy as np

from cluster.bench.arms import Cell
from cluster.bench.router_decoder import RouterDecoder
from cluster.bench.samples import Decoded, GroupPrompt, PromptGroup
from cluster.requests import EventSink, FinishReason, GenerationRequest, GenerationStatistics, TokenEvent
from cluster.router import Router
from cluster.router.rounds import TargetRounds
from cluster.router.timings import RoundTimings


class _Router:
    """Its sequences write a token at a time, and end after as many as they want."""

    def __init__(self) -> None:
        self.timings = RoundTimings()
        self.rounds: list[TargetRounds] = []
        self._left: dict[str, int] = {}
        self.client: EventSink | None = None

    def submit(self, request: GenerationRequest, client: EventSink) -> None:
        self._left[request.sequence_id], self.client = request.max_tokens, client

    def release_client(self, client: EventSink) -> None:
        assert client is self.client

    def write(self, *sequence_ids: str) -> None:
        assert self.client is not None
        for sequence_id in sequence_ids:
            self._left[sequence_id] -= 1
        self.client.put([self._event(sequence_id) for sequence_id in sequence_ids])

    def _event(self, sequence_id: str) -> TokenEvent:
        token = np.array([7], np.int32)
        if self._left[sequence_id]:
            return TokenEvent(sequence_id, token)
        del self._left[sequence_id]
        place = int(sequence_id)
        statistics = GenerationStatistics(place + 1, 10 * place, place, 1, 0.0, 0.0, 0.0, 0)
        return TokenEvent(sequence_id, token, FinishReason.LENGTH, statistics)

    @property
    def running(self) -> list[str]:
        return list(self._left)


async def _decoding(group: PromptGroup) -> tuple[_Router, asyncio.Task[Decoded]]:
    router = _Router()
    decoder = RouterDecoder(cast(Router, router), ())
    task = asyncio.create_task(decoder.decode(group, Cell(0.0, 2), None))
    await asyncio.sleep(0)
    return router, task


def _prompts(*max_tokens: int) -> tuple[GroupPrompt, ...]:
    return tuple(GroupPrompt((1,), most, seed) for seed, most in enumerate(max_tokens))


async def test_time_begins_when_all_of_the_lead_in_run_and_ends_when_one_place_stays_empty() -> None:
    router, task = await _decoding(PromptGroup(_prompts(3, 3), lead_in=_prompts(2, 3)))
    router.write("0")
    assert router.running == ["0", "1"]
    router.write("0")  # ends, 2 begins
    router.write("1")  # the last one's first token: what comes from here on counts
    router.write("1", "2")
    router.write("1", "2")  # 1 ends, 3 begins
    router.write("2", "3")  # 2 ends, nobody begins
    router.write("3")
    router.write("3")
    decoded = await task
    assert decoded.timed_tokens == 6
    assert decoded.seconds > 0.0
    assert decoded.outputs == ((7, 7, 7), (7, 7, 7))  # without the lead-in's
    assert (decoded.verified_trees, decoded.tree_nodes, decoded.accepted_tokens) == (2 + 3, 20 + 30, 2 + 3)


async def test_without_a_lead_in_all_is_timed_from_the_submission() -> None:
    router, task = await _decoding(PromptGroup(_prompts(1, 2)))
    router.write("0", "1")
    router.write("1")
    assert (await task).timed_tokens == 2


async def test_what_ends_before_the_lead_in_runs_is_timed_from_the_submission() -> None:
    """A prompt so long that others end beside it: too little was asked for to time a load that lasts."""
    router, task = await _decoding(PromptGroup(_prompts(1, 1), lead_in=_prompts(1, 1)))
    for sequence_id in ("0", "2", "3"):
        router.write(sequence_id)
    assert router.running == ["1"]
    router.write("1")
    decoded = await task
    assert decoded.timed_tokens == 3
    assert decoded.seconds > 0.0
