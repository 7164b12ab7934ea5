"""What clients ask for during chaos, what they must get, and when they got it."""

from __future__ import annotations

import asyncio
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np

from cluster.requests import GenerationRequest, Strategy, TokenEvent
from cluster.router import Router, RouterSettings
from cluster.transports.in_process import InProcessContextSink, InProcessTarget
from dflash_core.contracts import SamplingParams
from dflash_core.runners.target import TargetRunner
from tests.chaos.margins import Margins
from tests.cluster.serving import TARGET_SETTINGS
from tests.cluster.simulated_client import Client
from tests.tiny import TinyPair

NUM_TEMPLATES = 32
_NUMBERS = count(1)  # of streams: of the whole process, since routers may still hold some of an earlier recorder


def templates(pair: TinyPair, seed: int = 0, number: int = NUM_TEMPLATES) -> list[GenerationRequest]:
    """Greedy and sampled, short and long, with any budget: half of each."""
    rng = random.Random(seed)
    requests = []
    for index in range(number):
        num_prompt_tokens = rng.randint(1, 60)
        is_long = index % 2 == 0
        sampling = SamplingParams(
            temperature=0.0 if index % 4 < 2 else rng.choice([0.7, 1.0]), seed=rng.randrange(2**64)
        )
        prompt = np.asarray([rng.randrange(2, pair.settings.vocab_size) for _ in range(num_prompt_tokens)], np.int32)
        max_tokens = rng.randint(100, 250) if is_long else rng.randint(4, 40)
        budget = rng.choice([None, None, 0, 7, 16])
        requests.append(
            GenerationRequest(f"t{index}", prompt, num_prompt_tokens, max_tokens, sampling, tree_budget=budget)
        )
    return requests


@dataclass(frozen=True)
class Workload:
    """Requests, and the tokens of each when nothing disturbs it: decoded plainly, without any drafter."""

    requests: list[GenerationRequest]
    expected: dict[str, list[int]]
    margins: Margins


async def make_workload(pair: TinyPair, seed: int = 0, number: int = NUM_TEMPLATES) -> Workload:
    """Decodes all requests in one process, without trees, failures or a prefix cache."""
    settings = TARGET_SETTINGS.model_copy(update={"prefix_caching": False, "num_blocks": 2048})
    requests = templates(pair, seed, number)
    client = Client()
    router = Router(RouterSettings(strategy=Strategy.NONE))
    with ThreadPoolExecutor(max_workers=1) as executor:
        runner = TargetRunner.load(str(pair.target), None, settings)
        router.add_target(InProcessTarget(runner, InProcessContextSink(), executor))
        for request in requests:
            router.submit(request, client)
        await client.wait(*(request.sequence_id for request in requests), timeout_s=200.0)
        await router.close()
    for name, event in client.last.items():
        assert event.error is None, (name, event.error)
    return Workload(requests, client.tokens, Margins(pair, runner))


@dataclass(eq=False)
class Stream:
    """One request on its way, with the time of every arrival of tokens."""

    request: GenerationRequest
    template: str
    tokens: list[int] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)  # time.monotonic()
    last: TokenEvent | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Recorder:
    """The sink of all streams of one run."""

    def __init__(self) -> None:
        self.streams: dict[str, Stream] = {}
        self.num_tokens = 0

    def new(self, template: GenerationRequest, **changes: object) -> Stream:
        sequence_id = f"s{next(_NUMBERS)}"
        stream = Stream(replace(template, sequence_id=sequence_id, **changes), template.sequence_id)
        self.streams[sequence_id] = stream
        return stream

    @property
    def open_streams(self) -> list[Stream]:
        return [stream for stream in self.streams.values() if stream.last is None]

    def put(self, events: list[TokenEvent]) -> None:
        now = time.monotonic()
        for event in events:
            stream = self.streams[event.sequence_id]
            assert stream.last is None, "no event after the last one"
            if len(event.token_ids):
                stream.tokens += event.token_ids.tolist()
                stream.arrivals.append(now)
                self.num_tokens += len(event.token_ids)
            if event.is_last:
                stream.last = event
                stream.done.set()


@dataclass(frozen=True)
class Verdict:
    num_streams: int
    num_tokens: int
    num_explained: int  # that differ where the two best scores lie within the error of fp32


def check_streams(workload: Workload, streams: list[Stream]) -> Verdict:
    """Fails on the first stream with an error, or whose tokens are not those of the undisturbed run."""
    num_explained = 0
    for stream in streams:
        assert stream.last is not None, f"{stream.request.sequence_id} has not ended"
        assert stream.last.error is None, f"{stream.request.sequence_id}: {stream.last.error!r}"
        expected = workload.expected[stream.template]
        if stream.tokens == expected:
            continue
        workload.margins.check_explained(stream.request, expected, stream.tokens)
        num_explained += 1
    return Verdict(len(streams), sum(len(stream.tokens) for stream in streams), num_explained)
