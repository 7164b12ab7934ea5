"""Every method of the internal services against hostile messages, on real servers and sockets with real, tiny models.

A peer that sends nonsense is told so and loses its stream. The requests of others, which run all the while, get the
tokens of plain decoding, and nothing is left behind.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cluster.requests import GenerationRequest
from cluster.wire.rounds import target_info_to_pb
from dflash_core.runners.settings import TargetSettings
from dflash_core.runners.target import TargetRunner
from protos import common_pb2, drafter_pb2, router_pb2
from tests.cluster.background import Background
from tests.cluster.serving import Cluster, check_outputs, decode_plainly, make_cluster, tiny_request
from tests.cluster.simulated_client import Client
from tests.fuzzed_messages import Hints, messages
from tests.tiny import TinyPair, make_tiny_pair
from tests.waiting import until

REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.FAILED_PRECONDITION,
}
ANSWER_TIMEOUT_S = 60.0  # a method that hangs fails its test
SETTINGS = TargetSettings(
    device="cpu", dtype="float32", num_blocks=64, max_rows=128, max_tree_rows=64, max_model_len=128
)

short = settings(
    max_examples=20,
    derandomize=True,
    deadline=None,
    phases=[Phase.generate],  # what fails is reported as it came: each try at a smaller one changes the servers
    suppress_health_check=list(HealthCheck),
)
long = settings(
    short, max_examples=int(os.environ.get("DFLASH_FUZZ_EXAMPLES", "500")), derandomize=False, print_blob=True
)

_ids = st.sampled_from(["a", "b", "c"])
_FLOAT32S = np.linspace(-1, 1, 64, dtype=np.float32).tobytes()
HINTS: Hints = {
    "sequence_id": _ids,
    "sequence_ids": _ids,
    "attempt": st.integers(0, 2),
    "attempts": st.integers(0, 2),
    "wait_ms": st.integers(0, 5),
    "timeout_ms": st.integers(0, 5_000),
    "max_tokens": st.integers(0, 6),
    "num_prompt_tokens": st.integers(0, 3),
    "temperature": st.sampled_from([0.0, 1.0]),
    "temperatures": st.sampled_from([0.0, 1.0]),
    "top_p": st.just(1.0),
    "top_ps": st.just(1.0),
    "min_p": st.just(0.0),
    "min_ps": st.just(0.0),
    "truncation_penalties": st.just(2.0),
    "root_tokens": st.integers(0, 299),
    "context_lens": st.integers(0, 4),
    "latency_class": st.sampled_from(["", "batch", "interactive"]),
    "drafter_address": st.sampled_from(["", "127.0.0.1:1"]),
    "dtype": st.sampled_from(["float32", "bfloat16", "float64", "int64"]),
    "shape": st.sampled_from([1, 2, 32]),
    "data": st.sampled_from([_FLOAT32S, _FLOAT32S[:128], np.full(32, np.nan, np.float32).tobytes(), b""]),
}


@dataclass
class Fuzzed:
    """A cluster, its loop, and requests that must not notice anything."""

    background: Background
    cluster: Cluster
    pair: TinyPair
    oracle: TargetRunner
    numbers: Iterator[int]

    @contextmanager
    def sound_requests(self) -> Iterator[None]:
        """What is done meanwhile changes none of their tokens, and leaves nothing behind."""
        client = Client()
        requests = [self._request() for _ in range(2)]
        self.background.run(self._submit(requests, client))
        yield
        self.background.run(self._check(requests, client))

    async def _submit(self, requests: list[GenerationRequest], client: Client) -> None:
        for request in requests:
            self.cluster.pool.submit(request, client)

    async def _check(self, requests: list[GenerationRequest], client: Client) -> None:
        await check_outputs(client, await decode_plainly(self.oracle, requests))
        await self.cluster.check_nothing_left()
        router = self.cluster.routers[0].router
        await until(lambda: (router.num_targets, router.num_drafters, router.num_waiting) == (1, 1, 0))
        drafter = self.cluster.drafters[0]
        await until(lambda: drafter.runner.free_blocks == drafter.runner.memory.num_blocks)
        assert not drafter.service._owners

    def _request(self) -> GenerationRequest:
        number = next(self.numbers)
        return tiny_request(
            random.Random(number), f"sound-{number}", self.pair.settings.vocab_size, tree_budget=12, max_tokens=12
        )


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    pair = make_tiny_pair(tmp_path_factory.mktemp("pair"), num_layers=2, target_layer_ids=(0, 1))
    with ExitStack() as stack:
        background = Background()
        stack.callback(background.close)
        cluster = stack.enter_context(background.entered(make_cluster(pair, target_settings=SETTINGS)))
        cluster.routers[0].service.limit_targets(lambda: None, list)  # or every further target is refused unread
        oracle = TargetRunner.load(str(pair.target), None, SETTINGS)
        yield Fuzzed(background, cluster, pair, oracle, count())


def converse(address: str, method: str, bodies: list[bytes], is_over: Callable[[bytes], bool] | None = None) -> None:
    """Sends all, keeps the stream open until `is_over` says so of an answer, and reads until the peer has ended it."""
    over = threading.Event()

    def requests() -> Iterator[bytes]:
        yield from bodies
        if is_over is not None:
            over.wait(ANSWER_TIMEOUT_S)

    with grpc.insecure_channel(address) as channel:
        call: Any = channel.stream_stream(method)(requests(), timeout=ANSWER_TIMEOUT_S)
        call.add_callback(over.set)
        with suppress(grpc.RpcError):
            for answer in call:
                if is_over is not None and is_over(answer):
                    over.set()
        assert call.code() is grpc.StatusCode.OK or call.code() in REFUSALS, f"{method}: {call.code()} {call.details()}"


def answers(number: int) -> Callable[[bytes], bool]:
    """True of the last of so many."""
    left = iter(range(number - 1, -1, -1))
    return lambda _: next(left, 0) == 0


def bodies_of(message_type: Any, hints: Hints = HINTS) -> st.SearchStrategy[list[bytes]]:
    encoded = messages(message_type, hints).map(lambda message: message.SerializeToString())
    return st.lists(st.one_of(encoded, encoded, encoded, st.binary(max_size=40)), min_size=1, max_size=4)


def check_submit(fuzzed: Fuzzed, bodies: list[bytes]) -> None:
    """With a sound request behind the others: when that has ended, those before it were served."""
    router = fuzzed.cluster.routers[0]
    last = router_pb2.Generation(
        sequence_id="last",
        token_ids=common_pb2.Int32Array(data=bytes(8)),
        num_prompt_tokens=2,
        max_tokens=4,
        sampling=common_pb2.Sampling(top_p=1.0),
    )

    def is_over(answer: bytes) -> bool:
        tokens = router_pb2.RouterMessage.FromString(answer).tokens
        return any(tokens.sequence_ids[place] == "last" for place in tokens.ends)

    bodies = [*bodies, router_pb2.GatewayMessage(generation=last).SerializeToString()]
    with fuzzed.sound_requests():
        converse(router.address, "/dflash.internal.v1.Router/Submit", bodies, is_over)


def check_lead(fuzzed: Fuzzed, bodies: list[bytes]) -> None:
    with fuzzed.sound_requests():
        converse(fuzzed.cluster.routers[0].address, "/dflash.internal.v1.Router/Lead", bodies)


def check_drafts(fuzzed: Fuzzed, bodies: list[bytes]) -> None:
    with fuzzed.sound_requests():
        address = fuzzed.cluster.drafters[0].address
        converse(address, "/dflash.internal.v1.Drafter/Drafts", bodies, answers(len(bodies)))


def check_context(fuzzed: Fuzzed, bodies: list[bytes]) -> None:
    """A router's stream has opened sequences, so that some features are wanted, and asks for drafts after them."""
    address = fuzzed.cluster.drafters[0].address

    def features_come(answer: bytes) -> bool:
        if drafter_pb2.DraftResult.FromString(answer).batch_id == OPENED.batch_id:
            converse(address, "/dflash.internal.v1.Drafter/AppendContext", bodies, answers(len(bodies)))
        return drafter_pb2.DraftResult.FromString(answer).batch_id == DRAFTED.batch_id

    asked = [OPENED.SerializeToString(), DRAFTED.SerializeToString()]
    with fuzzed.sound_requests():
        converse(address, "/dflash.internal.v1.Drafter/Drafts", asked, features_come)


OPENED = drafter_pb2.DraftRequest(
    batch_id=1, opens=[drafter_pb2.Open(key=common_pb2.SequenceKey(sequence_id=name, attempt=1)) for name in "abc"]
)
DRAFTED = drafter_pb2.DraftRequest(
    batch_id=2,
    wait_ms=50,
    blocks=drafter_pb2.DraftBlocks(
        keys=common_pb2.SequenceKeys(sequence_ids=["a", "b"], attempts=[1, 1]),
        root_tokens=[5, 6],
        context_lens=[1, 2],
        samplings=common_pb2.Samplings(
            temperatures=[0.0, 1.0], top_ks=[0, 2**32 - 1], top_ps=[1.0, 0.5], min_ps=[0.0, 0.0], seeds=[1, 2]
        ),
        uses_noise=[True, True],
        truncation_penalties=[2.0, 2.0],
    ),
)


def lead_as_one_of_ours(fuzzed: Fuzzed, bodies: list[bytes]) -> None:
    """What comes after a sound first message, so that the router gives it rounds."""
    info = router_pb2.TargetMessage(info=target_info_to_pb(fuzzed.cluster.targets[0].runner.info))
    check_lead(fuzzed, [info.SerializeToString(), *bodies])


CASES: dict[str, tuple[Callable[[Fuzzed, list[bytes]], None], st.SearchStrategy[list[bytes]]]] = {
    "submit": (check_submit, bodies_of(router_pb2.GatewayMessage)),
    "lead": (check_lead, bodies_of(router_pb2.TargetMessage)),
    "lead as one of ours": (lead_as_one_of_ours, bodies_of(router_pb2.TargetMessage)),
    "drafts": (check_drafts, bodies_of(drafter_pb2.DraftRequest)),
    "append context": (check_context, bodies_of(drafter_pb2.ContextBatch)),
}


@pytest.mark.parametrize("case", CASES)
@short
@given(data=st.data())
def test_hostile_streams(fuzzed: Fuzzed, case: str, data: st.DataObject) -> None:
    check, bodies = CASES[case]
    check(fuzzed, data.draw(bodies))


@pytest.mark.fuzz
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("case", CASES)
@long
@given(data=st.data())
def test_many_hostile_streams(fuzzed: Fuzzed, case: str, data: st.DataObject) -> None:
    check, bodies = CASES[case]
    check(fuzzed, data.draw(bodies))


@short
@given(body=st.binary(max_size=40))
@pytest.mark.parametrize("method", ["Router/Status", "Drafter/Info"])
def test_unary_methods(fuzzed: Fuzzed, method: str, body: bytes) -> None:
    host: Any = fuzzed.cluster.routers[0] if method == "Router/Status" else fuzzed.cluster.drafters[0]

    with grpc.insecure_channel(host.address) as channel:
        call: Any = channel.unary_unary(f"/dflash.internal.v1.{method}").future(body, timeout=ANSWER_TIMEOUT_S)
        assert call.code() is grpc.StatusCode.OK or call.code() in REFUSALS, call.details()
