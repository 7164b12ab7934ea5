"""`dflash complete`: one streamed completion from a running server, over OpenAI HTTP or gRPC."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import grpc
import httpx

from cluster.requests import LatencyClass
from cluster.transports.authentication import AUTHORIZATION, bearer
from deployments.cli.console import note_line, write_piece
from deployments.cli.options import RequestOptions
from dflash_core.errors import DFlashError, Unavailable
from protos import inference_pb2, inference_pb2_grpc

API_KEY = "DFLASH_API_KEY"
# A long prompt may queue for a while before its first token; a server that is not there answers at once.
HTTP_TIMEOUT = httpx.Timeout(600.0, connect=5.0)


def complete_over_http(prompt: str, server: str, model: str | None, options: RequestOptions, stats: bool) -> None:
    """Raises `Unavailable` where nothing answers, `DFlashError` with the server's own message where it refuses."""
    body: dict[str, Any] = {
        "prompt": prompt,
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    chosen = {
        "model": model,
        "seed": options.seed,
        "tree_budget": options.tree_budget,
        "stop": list(options.stop),
        "priority": options.priority or None,
        "latency_class": None if options.latency_class is LatencyClass.STANDARD else options.latency_class.value,
    }
    body |= {name: value for name, value in chosen.items() if value not in (None, [])}
    last: dict[str, Any] = {}
    try:
        with (
            httpx.Client(timeout=HTTP_TIMEOUT, headers=_authorization()) as client,
            client.stream("POST", f"{server.rstrip('/')}/v1/completions", json=body) as response,
        ):
            if response.status_code != 200:
                response.read()
                raise DFlashError(_http_error(response))
            for event in _events(response.iter_lines()):
                if "error" in event:
                    raise DFlashError(event["error"]["message"])
                for choice in event["choices"]:
                    write_piece(choice["text"])
                last = event
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise Unavailable(f"{server}: {error}") from error
    write_piece("\n")
    if stats and last.get("dflash"):
        usage = last["usage"]
        cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]
        _note_statistics(usage["prompt_tokens"], cached_tokens, usage["completion_tokens"], **last["dflash"])


def _authorization() -> dict[str, str]:
    """Of the key in the environment: one on the command line could be read by every user of the machine."""
    key = os.environ.get(API_KEY)
    return {} if key is None else {AUTHORIZATION: bearer(key)}


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a server-sent event stream, up to [DONE]."""
    for line in lines:
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            if data == "[DONE]":
                return
            yield json.loads(data)
    raise Unavailable("the stream ended before it was complete")


def _http_error(response: httpx.Response) -> str:
    """The message of an error in OpenAI's form; anything else, from a proxy in between, is shown as it came."""
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text.strip() or response.reason_phrase
    return f"{message} (HTTP {response.status_code})"


def complete_over_grpc(prompt: str, server: str, model: str | None, options: RequestOptions, stats: bool) -> None:
    """Raises `Unavailable` where nothing answers, `DFlashError` with the server's own message where it refuses."""
    request = inference_pb2.GenerateRequest(
        model=model or "",
        text=prompt,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        seed=options.seed,
        tree_budget=options.tree_budget,
        stop=options.stop,
        priority=options.priority,
        latency_class=inference_pb2.LatencyClass.Value(f"LATENCY_CLASS_{options.latency_class.name}"),
    )
    response = inference_pb2.GenerateResponse()
    with grpc.insecure_channel(server) as channel:
        try:
            for response in inference_pb2_grpc.InferenceStub(channel).Generate(
                request, metadata=tuple(_authorization().items())
            ):
                write_piece(response.text)
        except grpc.RpcError as error:
            raise _named(server, error) from error
    write_piece("\n")
    if stats:
        usage, statistics = response.usage, response.statistics
        _note_statistics(
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.completion_tokens,
            statistics.rounds,
            statistics.mean_acceptance_length,
            statistics.tree_nodes_verified,
            statistics.time_to_first_token_ms,
            statistics.time_per_output_token_ms,
        )


def _named(server: str, error: Any) -> DFlashError:
    """`error` is both a `grpc.RpcError` and a `grpc.Call`, which the type stubs cannot say."""
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return Unavailable(f"{server}: {error.details()}")
    return DFlashError(f"{error.details()} ({error.code().name})")


def _note_statistics(
    prompt_tokens: int,
    cached_tokens: int,
    output_tokens: int,
    rounds: int,
    mean_acceptance_length: float,
    tree_nodes_verified: int,
    time_to_first_token_ms: float,
    time_per_output_token_ms: float,
) -> None:
    note_line(
        f"{output_tokens} tokens in {rounds} rounds, {mean_acceptance_length:.2f} a round, "
        f"{tree_nodes_verified} tree nodes verified, first token after {time_to_first_token_ms:.0f} ms, "
        f"then {time_per_output_token_ms:.1f} ms a token; {cached_tokens} of {prompt_tokens} prompt tokens were cached"
    )
