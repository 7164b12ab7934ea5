"""The public APIs against any input: no fault of the server's, nothing left behind, the same tokens afterwards.

HTTP by schemathesis, from the application's own OpenAPI schema, and with values that no schema thinks of; gRPC with
messages made from the descriptors, and with bytes that are none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest
import schemathesis
from grpc_health.v1 import health_pb2
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import checks
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from protos import inference_pb2
from tests.cluster.background import Background
from tests.deployments.public_api import KEY, PublicApi, make_public_api
from tests.fuzzed_messages import Hints, messages
from tests.tiny import make_tiny_pair

AUTHORIZATION = {"authorization": f"Bearer {KEY}"}
SOUND = {"model": "tiny", "prompt": "def add(", "max_tokens": 12, "temperature": 1.0, "seed": 7, "tree_budget": 8}
TIMEOUT_S = 60.0  # whoever hangs fails the test

short = settings(
    max_examples=15,
    derandomize=True,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
MANY = int(os.environ.get("DFLASH_FUZZ_EXAMPLES", "1000"))
long = settings(short, max_examples=MANY, derandomize=False, print_blob=True)


@dataclass
class Fuzzed:
    background: Background
    api: PublicApi
    client: httpx.Client
    text: str

    def complete(self) -> str:
        response = self.client.post("/v1/completions", json=SOUND, headers=AUTHORIZATION)
        assert response.status_code == 200, response.text
        text: str = response.json()["choices"][0]["text"]
        return text

    def check(self) -> None:
        self.background.run(self.api.check_idle())
        assert self.complete() == self.text


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    pair = make_tiny_pair(tmp_path_factory.mktemp("pair"), num_layers=2, target_layer_ids=(0, 1))
    with ExitStack() as stack:
        background = Background()
        stack.callback(background.close)
        api = stack.enter_context(background.entered(make_public_api(pair)))
        client = stack.enter_context(httpx.Client(base_url=api.url, timeout=TIMEOUT_S))
        fuzzed = Fuzzed(background, api, client, "")
        fuzzed.text = fuzzed.complete()
        yield fuzzed
        fuzzed.check()


# --- HTTP

HTTP_CHECKS = [checks.not_a_server_error, response_schema_conformance, status_code_conformance]


def by_schema(fuzzed: Fuzzed, operation: Any, data: st.DataObject) -> None:
    mode = data.draw(st.sampled_from(schemathesis.GenerationMode))
    case = data.draw(operation.as_strategy(generation_mode=mode))
    response = case.call(base_url=fuzzed.api.url, headers=AUTHORIZATION, timeout=TIMEOUT_S)
    case.validate_response(response, checks=HTTP_CHECKS)


def operations(fuzzed: Fuzzed) -> list[Any]:
    schema = schemathesis.openapi.from_dict(fuzzed.client.get("/openapi.json").json())
    found = [result.ok() for result in schema.get_all_operations()]
    assert {(operation.method, operation.path) for operation in found} == {
        ("get", "/healthz"),
        ("get", "/v1/models"),
        ("get", "/v1/models/{name}"),
        ("post", "/v1/completions"),
    }
    return found


@short
@given(data=st.data())
def test_http_by_its_schema(fuzzed: Fuzzed, data: st.DataObject) -> None:
    for operation in operations(fuzzed):
        by_schema(fuzzed, operation, data)
    fuzzed.check()


@pytest.mark.fuzz
@pytest.mark.timeout(3_600)
@long
@given(data=st.data())
def test_http_by_its_schema_at_length(fuzzed: Fuzzed, data: st.DataObject) -> None:
    for operation in operations(fuzzed):
        by_schema(fuzzed, operation, data)
    fuzzed.check()


# fmt: off
ODD_VALUES: list[Any] = [
    0, -1, 1, 3, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, 2**64, -(2**63), 10**40, 0.5, -0.0, 1e-45, 1e-300, 1e300,
    "", "x", "\x00", "é" * 20, "\U0001f600", "x" * 3000, True, False, None, [], {}, [[]], [[[]]], {"a": [None]},
    [0], [2**31], [-1], [299], [300], ["x", "y"], ["x"] * 5, [[1, 2], [3]], ["x", 1],
]
FIELDS = [
    "model", "prompt", "max_tokens", "temperature", "top_p", "n", "stream", "stream_options", "stop", "seed", "user",
    "service_tier", "top_k", "min_p", "tree_budget", "timeout_ms", "priority", "latency_class", "logprobs", "echo",
    "best_of", "presence_penalty", "logit_bias", "suffix", "unknown",
]
# fmt: on
odd_bodies = st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(ODD_VALUES), max_size=3).map(
    lambda changes: json.dumps({**SOUND, "max_tokens": 3, **changes}).encode()
)
raw_bodies = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([b"", b"null", b"[" * 20_000, b'{"a":' * 20_000, b'{"prompt": NaN}', b'{"prompt": "\\ud800"}']),
    st.just(b" " * 300_000),  # more than is taken
)
headers = st.dictionaries(
    st.sampled_from(["x-request-timeout-ms", "content-type", "content-encoding", "accept", "x-request-id"]),
    st.sampled_from([b"", b"1", b"0", b"-1", b"\xb2", b"9" * 5000, b"60000", b"1e3", b"gzip", b"text/plain", b"\xff"]),
    max_size=2,
)


def odd_request(fuzzed: Fuzzed, body: bytes, fields: dict[str, bytes]) -> None:
    response = fuzzed.client.post("/v1/completions", content=body, headers={**fields, **AUTHORIZATION})
    # 504: a time limit of a millisecond is the client's own wish.
    assert response.status_code < 500 or response.status_code == 504, f"{response.status_code}: {response.text}"
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@short
@given(body=odd_bodies | odd_bodies | raw_bodies, fields=headers)
def test_http_with_odd_values(fuzzed: Fuzzed, body: bytes, fields: dict[str, bytes]) -> None:
    odd_request(fuzzed, body, fields)
    fuzzed.check()


@pytest.mark.fuzz
@pytest.mark.timeout(3_600)
@long
@given(body=odd_bodies | odd_bodies | raw_bodies, fields=headers)
def test_http_with_many_odd_values(fuzzed: Fuzzed, body: bytes, fields: dict[str, bytes]) -> None:
    odd_request(fuzzed, body, fields)
    fuzzed.check()


@pytest.mark.parametrize("field", FIELDS)
def test_http_with_every_odd_value(fuzzed: Fuzzed, field: str) -> None:
    for value in ODD_VALUES:
        odd_request(fuzzed, json.dumps({**SOUND, "max_tokens": 3, field: value}).encode(), {})
    fuzzed.check()


# --- gRPC

REFUSALS = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,  # of the request's own timeout_ms
}
HINTS: Hints = {
    "model": st.sampled_from(["", "tiny"]),
    "text": st.sampled_from(["def", "x"]),
    "ids": st.integers(0, 299),
    "max_tokens": st.integers(1, 6),
    "top_p": st.sampled_from([1.0, 0.5]),
    "temperature": st.sampled_from([0.0, 1.0]),
    "min_p": st.just(0.0),
    "stop": st.sampled_from(["a", "\n"]),
    "service": st.sampled_from(["", "dflash.v1.Inference"]),
    "timeout_ms": st.just(60_000),
}
METHODS: dict[str, Any] = {
    "dflash.v1.Inference/Generate": inference_pb2.GenerateRequest,
    "dflash.v1.Inference/Complete": inference_pb2.GenerateRequest,
    "dflash.v1.Inference/ListModels": inference_pb2.ListModelsRequest,
    "grpc.health.v1.Health/Check": health_pb2.HealthCheckRequest,
    "grpc.health.v1.Health/Watch": health_pb2.HealthCheckRequest,
}


def odd_call(fuzzed: Fuzzed, method: str, data: st.DataObject) -> None:
    sound = messages(METHODS[method], HINTS).map(lambda message: message.SerializeToString())
    body = data.draw(st.one_of(sound, sound, sound, st.binary(max_size=60), st.just(bytes(300_000))))
    metadata = tuple(AUTHORIZATION.items())
    with grpc.insecure_channel(fuzzed.api.grpc_target) as channel:
        if method.endswith(("Generate", "Watch")):
            call: Any = channel.unary_stream(f"/{method}")(body, timeout=TIMEOUT_S, metadata=metadata)
            code = _code_of_stream(call, stops_at_first=method.endswith("Watch"))
        else:
            call = channel.unary_unary(f"/{method}").future(body, timeout=TIMEOUT_S, metadata=metadata)
            code = call.code()
        assert code in REFUSALS, f"{code}: {call.details()}"


def _code_of_stream(call: Any, stops_at_first: bool) -> grpc.StatusCode:
    try:
        for _ in call:
            if stops_at_first:  # it goes on for as long as it is watched
                call.cancel()
                return grpc.StatusCode.OK
    except grpc.RpcError:
        pass
    code: grpc.StatusCode = call.code()
    return code


@pytest.mark.parametrize("method", METHODS)
@short
@given(data=st.data())
def test_grpc(fuzzed: Fuzzed, method: str, data: st.DataObject) -> None:
    odd_call(fuzzed, method, data)
    fuzzed.check()


@pytest.mark.fuzz
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("method", METHODS)
@long
@given(data=st.data())
def test_grpc_at_length(fuzzed: Fuzzed, method: str, data: st.DataObject) -> None:
    odd_call(fuzzed, method, data)
    fuzzed.check()
