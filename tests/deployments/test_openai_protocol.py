"""Bodies of `/v1/completions`: what is read, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deployments.http_api import completion_job
from deployments.openai_protocol import error_body, parse_completion
from dflash_core.errors import InvalidRequest, Overloaded, PromptTooLong, UnknownModel


def _parse(**body: Any) -> Any:
    return parse_completion(json.dumps(body).encode())


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        ([], []),
    ],
)
def test_the_four_forms_of_a_prompt(prompt: Any, prompts: list[Any]) -> None:
    assert _parse(prompt=prompt).prompts == prompts


def test_defaults_are_openais() -> None:
    job = completion_job(_parse(prompt="a"))
    assert (job.max_tokens, job.num_choices, job.sampling.temperature, job.sampling.top_p) == (16, 1, 1.0, 1.0)
    assert (job.model, job.stop, job.tree_budget, job.timeout_ms) == (None, (), None, 0)


def test_a_seed_is_kept_and_an_absent_one_is_drawn() -> None:
    assert completion_job(_parse(prompt="a", seed=7)).sampling.seed == 7
    assert completion_job(_parse(prompt="a", seed=-1)).sampling.seed == 2**64 - 1
    drawn = {completion_job(_parse(prompt="a")).sampling.seed for _ in range(8)}
    assert len(drawn) == 8


def test_extensions() -> None:
    job = completion_job(_parse(prompt="a", top_k=5, min_p=0.1, tree_budget=0, timeout_ms=50, stop=["x", "y"], n=3))
    assert (job.sampling.top_k, job.sampling.min_p) == (5, 0.1)
    assert (job.tree_budget, job.timeout_ms, job.stop, job.num_choices) == (0, 50, ("x", "y"), 3)
    assert completion_job(_parse(prompt="a", timeout_ms=50), "20").timeout_ms == 20


@pytest.mark.parametrize(
    ("fields", "priority", "latency_class"),
    [
        ({}, 0, "standard"),
        ({"priority": None, "latency_class": None, "service_tier": None}, 0, "standard"),
        ({"priority": -3, "latency_class": "interactive"}, -3, "interactive"),
        ({"priority": 2**31 - 1, "latency_class": "batch"}, 2**31 - 1, "batch"),
        ({"service_tier": "auto"}, 0, "standard"),
        ({"service_tier": "default", "latency_class": "standard"}, 0, "standard"),
        ({"service_tier": "flex"}, 0, "batch"),
        ({"service_tier": "priority", "latency_class": "interactive"}, 0, "interactive"),
    ],
)
def test_how_urgent_a_request_is(fields: dict[str, Any], priority: int, latency_class: str) -> None:
    job = completion_job(_parse(prompt="a", **fields))
    assert (job.priority, job.latency_class.value) == (priority, latency_class)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"priority": 2**31}, "priority", ["2147483647", "2147483648"]),
        ({"priority": "high"}, "priority", ["high"]),
        ({"priority": 1.5}, "priority", ["1.5"]),
        ({"latency_class": "flex"}, "latency_class", ["flex", "interactive", "standard", "batch"]),
        ({"service_tier": "scale"}, "service_tier", ["scale", "auto", "default", "flex", "priority"]),
        ({"service_tier": "flex", "latency_class": "standard"}, "service_tier", ["flex", "batch", "standard"]),
    ],
)
def test_an_urgency_that_there_is_not_is_refused(fields: dict[str, Any], param: str, words: list[str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        completion_job(_parse(prompt="a", **fields))
    assert caught.value.param == param
    assert all(word in caught.value.message for word in words)


def test_unsupported_fields_pass_at_their_defaults() -> None:
    body = _parse(
        prompt="a",
        echo=False,
        logprobs=None,
        best_of=1,
        presence_penalty=0,
        frequency_penalty=0.0,
        logit_bias={},
        suffix=None,
        user="me",
    )
    assert body.user == "me"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "a", "foo": 1}, "foo"),
        ({"prompt": "a", "stream_options": {"x": 1}}, "stream_options.x"),
        ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt": "a", "logprobs": 0}, "logprobs"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "presence_penalty": 0.5}, "presence_penalty"),
        ({"prompt": "a", "frequency_penalty": -0.5}, "frequency_penalty"),
        ({"prompt": "a", "logit_bias": {"1": 2}}, "logit_bias"),
        ({"prompt": "a", "suffix": "x"}, "suffix"),
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": "a", "temperature": -0.5}, "temperature"),
        ({"prompt": "a", "temperature": "hot"}, "temperature"),
        ({"prompt": "a", "top_p": 0}, "top_p"),
        ({"prompt": "a", "top_p": 1.5}, "top_p"),
        ({"prompt": "a", "top_k": -1}, "top_k"),
        ({"prompt": "a", "min_p": 2}, "min_p"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "max_tokens": 1.5}, "max_tokens"),
        ({"prompt": "a", "n": 0}, "n"),
        ({"prompt": "a", "n": True}, "n"),
        ({"prompt": "a", "seed": 2**64}, "seed"),
        ({"prompt": "a", "seed": 1.5}, "seed"),
        ({"prompt": "a", "stop": ""}, "stop"),
        ({"prompt": "a", "stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"prompt": "a", "stop": 3}, "stop"),
        ({"prompt": "a", "tree_budget": -1}, "tree_budget"),
        ({"prompt": "a", "timeout_ms": 0}, "timeout_ms"),
        ({"prompt": "a", "stream": "yes"}, "stream"),
        ({"prompt": "a", "model": 3}, "model"),
    ],
)
def test_a_wrong_field_is_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        completion_job(_parse(**body))
    assert caught.value.param == param
    assert param.split(".")[-1] in caught.value.message


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"text"', b'{"prompt": "\xff"}', b'{"prompt": "a",}'])
def test_malformed_json_is_an_invalid_request(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="body"):
        parse_completion(body)


def test_not_a_number_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_completion(b'{"prompt": "a", "temperature": NaN}')
    assert caught.value.param == "temperature"


def test_errors_take_openais_form() -> None:
    error = error_body(PromptTooLong("too long", param="prompt"))["error"]
    assert error == {
        "message": "too long",
        "type": "invalid_request_error",
        "param": "prompt",
        "code": "invalid_argument",
    }
    assert error_body(UnknownModel("no"))["error"]["code"] == "not_found"
    assert error_body(Overloaded("full"))["error"]["type"] == "rate_limit_error"
