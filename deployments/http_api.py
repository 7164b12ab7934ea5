"""The gateway's HTTP routes: OpenAI's completions and models, readiness, and errors in OpenAI's form."""

from __future__ import annotations

import math
import secrets
import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from cluster.requests import FinishReason
from cluster.status import http_status
from deployments.api_keys import KeyRing
from deployments.disconnects import ClientDisconnected, while_connected
from deployments.generation import GenerationService
from deployments.http_limits import read_body
from deployments.job import DEFAULT_MAX_TOKENS, GenerationJob, JobStatistics, TextDelta
from deployments.openai_protocol import (
    Completion,
    CompletionChoice,
    CompletionRequest,
    ErrorBody,
    ModelCard,
    ModelList,
    PromptTokensDetails,
    Statistics,
    Usage,
    error_body,
    parse_completion,
)
from dflash_core.contracts import SamplingParams
from dflash_core.errors import DFlashError, InvalidRequest, Overloaded, Unauthenticated

CLIENT_CLOSED_REQUEST = 499  # nginx's number; for the access log, since nobody reads the answer
TIMEOUT_HEADER = "x-request-timeout-ms"

# What a client may get instead of an answer, for the schema.
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "a field at fault, which the error names"},
    401: {"model": ErrorBody, "description": "no API key, or none that is valid here"},
    404: {"model": ErrorBody, "description": "no such model"},
    413: {"model": ErrorBody, "description": "the body is too large"},
    429: {"model": ErrorBody, "description": "the queues are full: see Retry-After"},
    503: {"model": ErrorBody, "description": "no target can be reached at present"},
    504: {"model": ErrorBody, "description": "the request's own timeout ran out"},
}


def build_http_app(service: GenerationService, drafter: str | None, keys: KeyRing) -> FastAPI:
    """The routes over `service`, those below /v1 with a key of `keys`. `/v1/models` shows the name `drafter`."""
    app = FastAPI(title="dflash-serve", description="Completions decoded with block-diffusion draft trees.")
    created = int(time.time())

    def card() -> ModelCard:
        return ModelCard(id=service.model_name, created=created, max_model_len=service.max_model_len, drafter=drafter)

    @app.exception_handler(DFlashError)
    async def named_error(request: Request, error: DFlashError) -> Response:
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def unknown_route(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}"
        body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": "unknown_route"}}
        return JSONResponse(body, status_code=error.status_code, headers=error.headers)

    @app.exception_handler(ClientDisconnected)
    async def nobody_there(request: Request, error: ClientDisconnected) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return error_response(DFlashError("internal error; the server's log has the cause"))

    @app.get("/healthz")
    async def healthz() -> Response:
        """200 when a round can run now, else 503."""
        ready = service.is_ready
        return JSONResponse({"status": "ready" if ready else "no target is connected"}, 200 if ready else 503)

    async def authenticate(request: Request) -> None:
        keys.authenticate(request.headers.get("authorization"))

    # HTTPBearer is there for the schema that clients read.
    wants_key = [Depends(HTTPBearer(auto_error=False)), Depends(authenticate)]
    v1 = APIRouter(prefix="/v1", dependencies=[] if keys.is_open else wants_key, responses=ERRORS)

    @v1.get("/models", response_model=ModelList)
    async def list_models() -> Response:
        return _json(ModelList(data=[card()]))

    @v1.get("/models/{name:path}", response_model=ModelCard)
    async def get_model(name: str) -> Response:
        service.check_model(name)
        return _json(card())

    schema = {"content": {"application/json": {"schema": CompletionRequest.model_json_schema()}}, "required": True}

    @v1.post("/completions", openapi_extra={"requestBody": schema}, response_model=Completion)
    async def completions(request: Request) -> Response:
        body = parse_completion(await read_body(request, service.limits))
        job = completion_job(body, request.headers.get(TIMEOUT_HEADER))
        service.check_job(job)
        answer = Answer(service.model_name, job)
        deltas = service.generate(job, answer.statistics)
        if body.stream:
            # The first token decides between an HTTP error and a stream: a refusal must not come as 200.
            try:
                first = await while_connected(request, _first(deltas))
            except BaseException:
                await deltas.aclose()
                raise
            include_usage = body.stream_options is not None and body.stream_options.include_usage
            return EventStream(answer.events(first, deltas, include_usage), deltas)
        try:
            return _json(await while_connected(request, answer.collect(deltas)))
        finally:
            await deltas.aclose()

    app.include_router(v1)
    return app


def completion_job(body: CompletionRequest, timeout_header: str | None = None) -> GenerationJob:
    """Fills in OpenAI's defaults. Raises `InvalidRequest` for values out of range."""
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream=true", param="stream_options")
    return GenerationJob(
        model=body.model,
        prompts=tuple(body.prompts),
        max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        num_choices=1 if body.n is None else body.n,
        sampling=SamplingParams(
            temperature=1.0 if body.temperature is None else body.temperature,
            top_k=body.top_k or 0,
            top_p=1.0 if body.top_p is None else body.top_p,
            min_p=body.min_p or 0.0,
            seed=secrets.randbits(64) if body.seed is None else body.seed % 2**64,
        ),
        stop=body.stop_strings,
        tree_budget=body.tree_budget,
        timeout_ms=_timeout_ms(body.timeout_ms, timeout_header),
        latency_class=body.urgency,
        priority=body.priority or 0,
    )


def _timeout_ms(field: int | None, header: str | None) -> int:
    """The shorter of the body's field and the header; 0 for none."""
    given = [] if field is None else [field]
    if header is not None:
        if not (header.isascii() and header.isdigit() and len(header) < 20):
            raise InvalidRequest(f"{TIMEOUT_HEADER} must be a number of milliseconds, got {header!r}")
        given.append(int(header))
    if any(value < 1 for value in given):
        raise InvalidRequest(f"timeout_ms must be at least 1, got {min(given)}", param="timeout_ms")
    return min(given, default=0)


class Answer:
    """Builds the answer to one request, whole or as server-sent events."""

    def __init__(self, model_name: str, job: GenerationJob) -> None:
        self.id = f"cmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.model_name = model_name
        self.num_outputs = len(job.prompts) * job.num_choices
        self.statistics = JobStatistics()

    async def collect(self, deltas: AsyncGenerator[TextDelta, None]) -> Completion:
        texts: list[list[str]] = [[] for _ in range(self.num_outputs)]
        reasons: list[FinishReason | None] = [None] * self.num_outputs
        async for delta in deltas:
            texts[delta.index].append(delta.text)
            reasons[delta.index] = delta.finish_reason
        choices = [
            CompletionChoice(index=index, text="".join(text), finish_reason=_reason(reason))
            for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return self._completion(choices, usage=self._usage(), dflash=self._statistics())

    async def events(
        self, first: TextDelta, deltas: AsyncGenerator[TextDelta, None], include_usage: bool
    ) -> AsyncGenerator[bytes, None]:
        """One event per delta. The last one with a choice, and the one with usage, carry the statistics."""
        num_open = self.num_outputs
        delta: TextDelta | None = first
        try:
            while delta is not None:
                num_open -= delta.finish_reason is not None
                choice = CompletionChoice(
                    index=delta.index, text=delta.text, finish_reason=_reason(delta.finish_reason)
                )
                yield _event(self._completion([choice], dflash=None if num_open else self._statistics()))
                delta = await anext(deltas, None)
            if include_usage:
                yield _event(self._completion([], usage=self._usage(), dflash=self._statistics()))
        except DFlashError as error:
            yield b"data: " + JSONResponse(error_body(error)).body + b"\n\n"
        yield b"data: [DONE]\n\n"

    def _completion(
        self, choices: list[CompletionChoice], usage: Usage | None = None, dflash: Statistics | None = None
    ) -> Completion:
        return Completion(
            id=self.id, created=self.created, model=self.model_name, choices=choices, usage=usage, dflash=dflash
        )

    def _usage(self) -> Usage:
        prompt, output = self.statistics.prompt_tokens, self.statistics.output_tokens
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=output,
            total_tokens=prompt + output,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=self.statistics.cached_tokens),
        )

    def _statistics(self) -> Statistics:
        return Statistics(
            rounds=self.statistics.rounds,
            mean_acceptance_length=self.statistics.mean_acceptance_length,
            tree_nodes_verified=self.statistics.tree_nodes,
            time_to_first_token_ms=self.statistics.time_to_first_token_ms,
            time_per_output_token_ms=self.statistics.time_per_output_token_ms,
        )


class EventStream(StreamingResponse):
    """Server-sent events that close the generation however the response ends, also when it never began to be sent."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], deltas: AsyncGenerator[TextDelta, None]) -> None:
        super().__init__(events, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._generators = (events, deltas)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            for generator in self._generators:
                await generator.aclose()


async def _first(deltas: AsyncGenerator[TextDelta, None]) -> TextDelta:
    return await anext(deltas)


def error_response(error: DFlashError) -> JSONResponse:
    """An error in OpenAI's JSON form under its HTTP status."""
    headers = None
    if isinstance(error, Overloaded):
        headers = {"retry-after": str(math.ceil(error.retry_after_s))}
    elif isinstance(error, Unauthenticated):
        headers = {"www-authenticate": "Bearer"}
    return JSONResponse(error_body(error), status_code=http_status(error), headers=headers)


def _reason(reason: FinishReason | None) -> Any:
    return None if reason is None else reason.value


def _json(model: Completion | ModelList | ModelCard) -> Response:
    exclude = {"dflash"} if isinstance(model, Completion) and model.dflash is None else None
    return Response(model.model_dump_json(exclude=exclude), media_type="application/json")


def _event(completion: Completion) -> bytes:
    exclude = {"dflash"} if completion.dflash is None else None
    return b"data: " + completion.model_dump_json(exclude=exclude).encode() + b"\n\n"
