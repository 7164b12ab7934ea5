"""The HTTP routes in process, over scripted routers: statuses, error bodies, server-sent events."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from deployments.api_keys import ApiKeySource, KeyRing
from deployments.border_settings import LimitSettings
from deployments.generation import GenerationService
from deployments.http_api import build_http_app
from dflash_core.errors import DeadlineExceeded, DFlashError, Overloaded, Unavailable
from tests.deployments.scripted import INFO, TOKENIZER, ScriptedRouters


def _client(routers: ScriptedRouters, keys: KeyRing | None = None) -> httpx.AsyncClient:
    service = GenerationService(routers, TOKENIZER, "tiny", LimitSettings())
    app = build_http_app(service, "tiny-drafter", keys or KeyRing(ApiKeySource()))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://server")


async def _post(routers: ScriptedRouters, **body: Any) -> httpx.Response:
    async with _client(routers) as client:
        return await client.post("/v1/completions", json={"model": "tiny", "prompt": "x", **body})


def _events(response: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def test_a_plain_answer() -> None:
    response = await _post(ScriptedRouters(["a", "bcd"]))
    assert response.status_code == 200
    answer = response.json()
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": "abcd", "logprobs": None, "finish_reason": "length"}]
    assert answer["usage"] == {
        "prompt_tokens": 1,
        "completion_tokens": 4,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert answer["dflash"]["rounds"] == 2
    assert answer["dflash"]["mean_acceptance_length"] == 3.0
    assert answer["dflash"]["tree_nodes_verified"] == 4


async def test_a_stream_ends_with_statistics_and_done() -> None:
    response = await _post(ScriptedRouters(["a", "bcd"]), stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done = _events(response)
    assert done == "[DONE]"
    assert [event["choices"][0]["text"] for event in events] == ["a", "bcd"]
    assert [event["choices"][0]["finish_reason"] for event in events] == [None, "length"]
    assert "dflash" not in events[0]
    assert events[-1]["dflash"]["rounds"] == 2
    assert all(event["usage"] is None for event in events)


async def test_include_usage_adds_an_event_without_choices() -> None:
    routers = ScriptedRouters(cached_tokens=1)
    response = await _post(routers, prompt="abc", stream=True, stream_options={"include_usage": True})
    *_, usage, done = _events(response)
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 3,
        "total_tokens": 6,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    assert usage["dflash"]["tree_nodes_verified"] == 4


async def test_an_error_in_mid_stream_is_an_event() -> None:
    response = await _post(ScriptedRouters(["a"], error=DeadlineExceeded("timeout_ms 5 ran out")), stream=True)
    assert response.status_code == 200
    first, error, done = _events(response)
    assert first["choices"][0]["text"] == "a"
    assert error["error"]["message"] == "timeout_ms 5 ran out"
    assert done == "[DONE]"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status"), [(Overloaded("full", retry_after_s=1.2), 429), (DeadlineExceeded("late"), 504)]
)
async def test_an_error_before_the_first_token_is_a_status(error: DFlashError, status: int, stream: bool) -> None:
    response = await _post(ScriptedRouters([], error=error), stream=stream)
    assert response.status_code == status
    assert response.json()["error"]["message"] == error.message
    if status == 429:
        assert response.headers["retry-after"] == "2"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/completions", 405),
        ("GET", "/v1/models/other", 404),
    ],
)
async def test_unknown_routes_and_models_have_openais_form(method: str, path: str, status: int) -> None:
    async with _client(ScriptedRouters()) as client:
        response = await client.request(method, path)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


async def test_malformed_json_is_400() -> None:
    async with _client(ScriptedRouters()) as client:
        response = await client.post("/v1/completions", content=b"{")
    assert response.status_code == 400
    assert "JSON" in response.json()["error"]["message"]


async def test_models_and_readiness() -> None:
    routers = ScriptedRouters()
    routers.info = None
    async with _client(routers) as client:
        assert (await client.get("/healthz")).status_code == 503
        response = await client.post("/v1/completions", json={"prompt": "x"})
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "unavailable"
        routers.info = INFO
        (card,) = (await client.get("/v1/models")).json()["data"]
        assert (card["id"], card["max_model_len"], card["drafter"]) == ("tiny", 32, "tiny-drafter")
        assert (await client.get("/v1/models/tiny")).json()["id"] == "tiny"
        assert (await client.get("/healthz")).status_code == 200


async def test_a_fault_of_ours_is_500_without_its_details() -> None:
    class Broken(ScriptedRouters):
        def submit(self, *_: Any) -> None:
            raise RuntimeError("secret")

    response = await _post(Broken())
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.json()["error"]["code"] == "internal"


async def test_a_router_that_is_gone_is_503() -> None:
    assert (await _post(ScriptedRouters([], error=Unavailable("gone")))).status_code == 503


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_before_an_answer_cancels_its_output(stream: bool) -> None:
    routers = ScriptedRouters(pieces=[])  # never a token
    app = build_http_app(GenerationService(routers, TOKENIZER, "tiny", LimitSettings()), None, KeyRing(ApiKeySource()))
    body = json.dumps({"model": "tiny", "prompt": "x", "stream": stream}).encode()
    messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    messages.put_nowait({"type": "http.request", "body": body, "more_body": False})
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": "/v1/completions",
        "raw_path": b"/v1/completions", "query_string": b"", "headers": [], "server": ("server", 80),
        "client": ("client", 1), "root_path": "",
    }  # fmt: skip
    serving = asyncio.create_task(app(scope, messages.get, send))
    await routers.submitted.wait()
    assert not routers.cancelled
    messages.put_nowait({"type": "http.disconnect"})
    await asyncio.wait_for(serving, 5)
    assert routers.cancelled == [request.sequence_id for request in routers.requests]
    assert sent[0]["status"] == 499
