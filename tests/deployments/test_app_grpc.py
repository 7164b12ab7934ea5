"""The running application over gRPC: the public service, health, reflection, and status codes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from protos import inference_pb2, inference_pb2_grpc
from tests.deployments.conftest import ServedApplication

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

PROMPT = "def add(left, right):\n"


@pytest.fixture(scope="module")
def channel(served: ServedApplication) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(served.grpc_target) as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> Any:
    return inference_pb2_grpc.InferenceStub(channel)


def _request(**fields: Any) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(**{"text": PROMPT, "max_tokens": 24, "seed": 11, **fields})


def test_models(stub: Any) -> None:
    (model,) = stub.ListModels(inference_pb2.ListModelsRequest(), timeout=60).models
    assert model.id == "tiny"
    assert model.max_model_len == 512
    assert model.drafter


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_stream_says_what_the_whole_answer_says(stub: Any, temperature: float) -> None:
    whole = stub.Complete(_request(temperature=temperature), timeout=60)
    messages = list(stub.Generate(_request(temperature=temperature), timeout=60))
    assert "".join(message.text for message in messages) == whole.text
    assert [token for message in messages for token in message.token_ids] == list(whole.token_ids)
    last = messages[-1]
    assert last.finish_reason == whole.finish_reason
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert getattr(last.usage, name) == getattr(whole.usage, name)
    assert last.usage.completion_tokens == len(whole.token_ids)
    assert last.statistics.rounds >= 1  # how many may differ: a draft may come late
    assert last.statistics.tree_nodes_verified > 0
    assert all(not message.HasField("usage") for message in messages[:-1])
    assert whole.model == "tiny"


def test_a_prompt_that_was_computed_before_is_cached(stub: Any) -> None:
    prompt = inference_pb2.TokenIds(ids=[(11 * i + 5) % 290 for i in range(40)])
    request = inference_pb2.GenerateRequest(token_ids=prompt, max_tokens=8, seed=3)
    first, second = [stub.Complete(request, timeout=60) for _ in range(2)]
    assert (first.usage.cached_tokens, second.usage.cached_tokens) == (0, 32)
    assert first.token_ids == second.token_ids


def test_http_and_grpc_agree(served: ServedApplication, stub: Any) -> None:
    import httpx

    body = {"prompt": PROMPT, "max_tokens": 24, "seed": 11, "temperature": 1.0}
    answer = httpx.post(f"{served.url}/v1/completions", json=body, timeout=60).json()
    assert answer["choices"][0]["text"] == stub.Complete(_request(), timeout=60).text


def test_health_and_reflection(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "dflash.v1.Inference"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=60)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="nothing"), timeout=60)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=60)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    database = ProtoReflectionDescriptorDatabase(channel)
    assert "dflash.v1.Inference" in database.get_services()
    service = DescriptorPool(database).FindServiceByName("dflash.v1.Inference")
    assert sorted(method.name for method in service.methods) == ["Complete", "Generate", "ListModels"]


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"text": ""}, grpc.StatusCode.INVALID_ARGUMENT, ["empty"]),
        ({"text": "x " * 2000}, grpc.StatusCode.INVALID_ARGUMENT, ["512"]),
        ({"model": "other"}, grpc.StatusCode.NOT_FOUND, ["other", "tiny"]),
        ({"temperature": -1.0}, grpc.StatusCode.INVALID_ARGUMENT, ["-1"]),
        ({"max_tokens": 0}, grpc.StatusCode.INVALID_ARGUMENT, ["max_tokens"]),
        ({"max_tokens": 450, "timeout_ms": 1}, grpc.StatusCode.DEADLINE_EXCEEDED, ["1"]),
    ],
)
@pytest.mark.parametrize("method", ["Complete", "Generate"])
def test_bad_input(stub: Any, fields: dict[str, Any], code: grpc.StatusCode, words: list[str], method: str) -> None:
    call = getattr(stub, method)
    with pytest.raises(grpc.RpcError) as caught:
        list(call(_request(**fields), timeout=60))
    assert caught.value.code() is code
    assert all(word in caught.value.details() for word in words)


def test_a_prompt_is_required(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Complete(inference_pb2.GenerateRequest(max_tokens=3), timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("method", ["Complete", "ListModels"])
def test_bytes_that_are_no_message_are_an_invalid_argument(channel: grpc.Channel, method: str) -> None:
    call = channel.unary_unary(f"/dflash.v1.Inference/{method}")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\xff\xff\xff", timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    stream = channel.unary_stream("/dflash.v1.Inference/Generate")
    with pytest.raises(grpc.RpcError) as caught:
        list(stream(b"\xff\xff\xff", timeout=60))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
