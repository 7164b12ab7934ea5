"""The running application over HTTP, with the `openai` package and with raw requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.deployments.conftest import ServedApplication

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

PROMPT = "def add(left, right):\n"


@pytest.fixture(scope="module")
def client(served: ServedApplication) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def _complete(client: openai.OpenAI, **options: Any) -> Any:
    return client.completions.create(model="tiny", **{"prompt": PROMPT, "max_tokens": 12, **options})


def test_models(client: openai.OpenAI, served: ServedApplication) -> None:
    (model,) = client.models.list().data
    assert model.id == "tiny"
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_plain_completion_has_usage_and_statistics(client: openai.OpenAI) -> None:
    answer = _complete(client, temperature=0)
    assert answer.object == "text_completion"
    assert len(answer.choices) == 1
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert answer.usage.completion_tokens <= 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    statistics = answer.dflash
    assert statistics["rounds"] >= 1
    assert statistics["tree_nodes_verified"] > 0
    assert statistics["mean_acceptance_length"] >= 1.0
    assert statistics["time_to_first_token_ms"] > 0


def test_a_prompt_that_was_computed_before_is_cached(client: openai.OpenAI) -> None:
    """In blocks of 16; and of a prompt with two choices the tokens count once."""
    prompt = [(7 * i + 3) % 290 for i in range(40)]
    answers = [_complete(client, prompt=prompt, seed=3, temperature=1.0, n=n) for n in (1, 1, 2)]
    assert [answer.usage.prompt_tokens_details.cached_tokens for answer in answers] == [0, 32, 32]
    assert [answer.usage.prompt_tokens for answer in answers] == [40, 40, 40]
    assert len({answer.choices[0].text for answer in answers}) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_stream_says_what_the_plain_answer_says(client: openai.OpenAI, temperature: float) -> None:
    options = {"temperature": temperature, "seed": 11, "max_tokens": 24}
    plain = _complete(client, **options)
    events = list(_complete(client, **options, stream=True, stream_options={"include_usage": True}))
    assert "".join(event.choices[0].text for event in events if event.choices) == plain.choices[0].text
    assert events[-2].choices[0].finish_reason == plain.choices[0].finish_reason
    assert events[-1].choices == []
    usages = [answer.usage.model_dump(exclude={"prompt_tokens_details"}) for answer in (events[-1], plain)]
    assert usages[0] == usages[1]
    assert events[-1].dflash["rounds"] >= 1  # how many may differ: a draft may come late


def test_without_include_usage_the_last_event_has_the_statistics(client: openai.OpenAI) -> None:
    events = list(_complete(client, stream=True, seed=1))
    assert events[-1].choices[0].finish_reason is not None
    assert events[-1].dflash["rounds"] >= 1
    assert all(event.usage is None for event in events)


def test_several_prompts_and_choices(client: openai.OpenAI) -> None:
    answer = _complete(client, prompt=[PROMPT, "class Stack:\n"], n=2, seed=5, temperature=1.0)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    alone = _complete(client, prompt=[PROMPT], n=2, seed=5, temperature=1.0)
    assert [choice.text for choice in alone.choices] == [choice.text for choice in answer.choices[:2]]
    assert answer.choices[0].text != answer.choices[1].text


def test_token_id_prompts(client: openai.OpenAI, served: ServedApplication) -> None:
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(served.target / "tokenizer.json")).encode(PROMPT).ids
    text = _complete(client, temperature=0).choices[0].text
    assert _complete(client, prompt=ids, temperature=0).choices[0].text == text
    assert [choice.text for choice in _complete(client, prompt=[ids, ids], temperature=0).choices] == [text, text]


def test_a_seed_repeats_an_answer_and_none_does_not(client: openai.OpenAI) -> None:
    seeded = {_complete(client, seed=7, temperature=1.0).choices[0].text for _ in range(3)}
    assert len(seeded) == 1
    drawn = {_complete(client, temperature=1.0, max_tokens=24).choices[0].text for _ in range(4)}
    assert len(drawn) > 1


@pytest.mark.parametrize("tree_budget", [0, 1, 16, 64])
def test_a_stop_string_cuts_at_the_same_place_for_any_tree(client: openai.OpenAI, tree_budget: int) -> None:
    whole = _complete(client, seed=3, temperature=1.0, max_tokens=40).choices[0].text
    stop = whole[len(whole) // 2 :][:2]
    answer = _complete(
        client, seed=3, temperature=1.0, max_tokens=40, stop=[stop], extra_body={"tree_budget": tree_budget}
    )
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        ({"prompt": ""}, 400, "prompt", ["empty"]),
        ({"prompt": []}, 400, "prompt", ["empty"]),
        ({"prompt": [[]]}, 400, "prompt", ["empty"]),
        ({"prompt": "x " * 2000}, 400, "prompt", ["512"]),
        ({"prompt": [300]}, 400, "prompt", ["300"]),
        ({"max_tokens": 600}, 400, "max_tokens", ["600", "512"]),
        ({"max_tokens": 0}, 400, "max_tokens", ["0"]),
        ({"model": "other"}, 404, "model", ["other", "tiny"]),
        ({"temperature": -1}, 400, "temperature", ["-1"]),
        ({"top_p": 2}, 400, "top_p", ["2"]),
        ({"logprobs": 3}, 400, "logprobs", ["3"]),
        ({"colour": "red"}, 400, "colour", ["colour"]),
        ({"tree_budget": 100_000}, 400, "tree_budget", ["100000"]),
        ({"n": 1000}, 400, "n", ["1000"]),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_input(
    served: ServedApplication, body: dict[str, Any], status: int, param: str, words: list[str], stream: bool
) -> None:
    response = httpx.post(
        f"{served.url}/v1/completions", json={"model": "tiny", "prompt": PROMPT, "stream": stream, **body}, timeout=60
    )
    assert response.status_code == status
    error = response.json()["error"]
    assert error["param"] == param
    assert all(word in error["message"] for word in words)


@pytest.mark.parametrize("body", [b"{", b"", b"[]", b"\xff\xfe"])
def test_malformed_bodies_are_400(served: ServedApplication, body: bytes) -> None:
    response = httpx.post(f"{served.url}/v1/completions", content=body, timeout=60)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_unknown_routes_have_openais_form(served: ServedApplication) -> None:
    response = httpx.get(f"{served.url}/v1/nothing", timeout=60)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "unknown_route"


def test_a_deadline_is_an_error_not_a_hang(served: ServedApplication) -> None:
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 450, "timeout_ms": 1, "temperature": 0}
    response = httpx.post(f"{served.url}/v1/completions", json=body, timeout=60)
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"


def test_a_deadline_in_mid_stream_is_an_event(served: ServedApplication) -> None:
    body = {"model": "tiny", "prompt": [PROMPT] * 32, "max_tokens": 480, "stream": True, "tree_budget": 0, "seed": 1}
    timeout_ms = 40
    while True:
        with httpx.stream(
            "POST", f"{served.url}/v1/completions", json={**body, "timeout_ms": timeout_ms}, timeout=60
        ) as response:
            if response.status_code == 504:  # before the first token: give it more
                timeout_ms *= 2
                continue
            lines = [line for line in response.iter_lines() if line]
        break
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
