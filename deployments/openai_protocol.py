"""OpenAI's `/v1/completions` and `/v1/models` as pydantic models, and how a body that does not fit is refused.

Extensions of ours on the request: `top_k`, `min_p`, `tree_budget`, `timeout_ms`, `priority` (as vLLM's: lower goes
first), `latency_class`; on the answer: `dflash`. `service_tier`, which OpenAI's chat API has, is another way to name a
latency class. A field that is unknown is refused by name; one that OpenAI has and this server cannot do is refused
unless it holds its default.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import ErrorDetails

from cluster.requests import LatencyClass
from deployments.job import MAX_STOP_STRINGS
from dflash_core.errors import DFlashError, ErrorCode, InvalidRequest

TokenId = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
Text = Annotated[str, StringConstraints(strict=True)]
StopString = Annotated[str, StringConstraints(strict=True, min_length=1)]

# Fields of OpenAI's API that cannot be served yet, with the values that ask for nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "logprobs": (None,),
    "echo": (None, False),
    "best_of": (None, 1),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "suffix": (None,),
}


class ServiceTier(Enum):
    """OpenAI's names for how urgent a request is; "scale", capacity that was bought, does not exist here."""

    AUTO = "auto"
    DEFAULT = "default"
    FLEX = "flex"
    PRIORITY = "priority"


_CLASS_OF_TIER = {
    ServiceTier.AUTO: LatencyClass.STANDARD,
    ServiceTier.DEFAULT: LatencyClass.STANDARD,
    ServiceTier.FLEX: LatencyClass.BATCH,
    ServiceTier.PRIORITY: LatencyClass.INTERACTIVE,
}


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    include_usage: bool = Field(False, strict=True)


class CompletionRequest(BaseModel):
    """The body of `POST /v1/completions`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Text | None = None
    prompt: Text | list[Text] | list[TokenId] | list[list[TokenId]]
    max_tokens: Annotated[int, Field(strict=True)] | None = None
    temperature: float | None = Field(None, strict=True, allow_inf_nan=False)
    top_p: float | None = Field(None, strict=True, allow_inf_nan=False)
    n: Annotated[int, Field(strict=True)] | None = None
    stream: Annotated[bool, Field(strict=True)] | None = None
    stream_options: StreamOptions | None = None
    stop: StopString | list[StopString] | None = None
    seed: Annotated[int, Field(strict=True, ge=-(2**63), lt=2**64)] | None = None
    user: Text | None = None
    service_tier: ServiceTier | None = None

    top_k: Annotated[int, Field(strict=True)] | None = None
    min_p: float | None = Field(None, strict=True, allow_inf_nan=False)
    tree_budget: Annotated[int, Field(strict=True)] | None = None
    timeout_ms: Annotated[int, Field(strict=True)] | None = None
    priority: Annotated[int, Field(strict=True)] | None = None
    latency_class: LatencyClass | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, body: Any) -> Any:
        """Takes out what is at its default, so that SDKs may send it; anything else is an error with the name."""
        if not isinstance(body, dict):
            return body
        for name, harmless in _UNSUPPORTED.items():
            if name in body and not any(body[name] == value for value in harmless):
                raise InvalidRequest(f"{name} is not supported, got {body[name]!r}; leave it out", param=name)
        return {name: value for name, value in body.items() if name not in _UNSUPPORTED}

    @property
    def urgency(self) -> LatencyClass:
        """By either name. Raises `InvalidRequest` where the two contradict each other."""
        if self.service_tier is None:
            return self.latency_class or LatencyClass.STANDARD
        of_tier = _CLASS_OF_TIER[self.service_tier]
        if self.latency_class not in (None, of_tier):
            raise InvalidRequest(
                f"service_tier {self.service_tier.value!r} means latency_class {of_tier.value!r}, "
                f"got {self.latency_class.value!r}: give one of the two",
                param="service_tier",
            )
        return of_tier

    @property
    def stop_strings(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def prompts(self) -> list[str | list[int]]:
        """One entry per prompt: text, or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]  # one prompt of token ids
        return list(self.prompt)  # type: ignore[arg-type]


class PromptTokensDetails(BaseModel):
    cached_tokens: int  # of prompt_tokens, those that did not have to be computed


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Statistics(BaseModel):
    """How a request was decoded: the extra field `dflash` of an answer."""

    rounds: int
    mean_acceptance_length: float  # output tokens per round
    tree_nodes_verified: int
    time_to_first_token_ms: float
    time_per_output_token_ms: float


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: None = None
    finish_reason: Literal["stop", "length"] | None = None


class Completion(BaseModel):
    """A whole answer, or one event of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    dflash: Statistics | None = None


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["dflash-serve"] = "dflash-serve"
    max_model_len: int | None = None
    drafter: str | None = None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


_ERROR_TYPES = {
    ErrorCode.INVALID_ARGUMENT: "invalid_request_error",
    ErrorCode.UNAUTHENTICATED: "invalid_request_error",
    ErrorCode.NOT_FOUND: "not_found_error",
    ErrorCode.FAILED_PRECONDITION: "invalid_request_error",
    ErrorCode.RESOURCE_EXHAUSTED: "rate_limit_error",
    ErrorCode.UNAVAILABLE: "service_unavailable_error",
    ErrorCode.DEADLINE_EXCEEDED: "timeout_error",
    ErrorCode.CANCELLED: "request_cancelled_error",
    ErrorCode.UNIMPLEMENTED: "invalid_request_error",
    ErrorCode.INTERNAL: "server_error",
}


# Where OpenAI has a code of its own that clients look for.
_ERROR_CODES = {ErrorCode.UNAUTHENTICATED: "invalid_api_key"}


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """OpenAI's form of an error."""

    error: ErrorDetail


def error_body(error: DFlashError) -> dict[str, dict[str, str | None]]:
    """The JSON of an error in OpenAI's form."""
    return {
        "error": {
            "message": error.message,
            "type": _ERROR_TYPES[error.code],
            "param": error.param,
            "code": _ERROR_CODES.get(error.code, error.code.value),
        }
    }


def parse_completion(body: bytes) -> CompletionRequest:
    """Reads a request body. Raises `InvalidRequest` that names the field at fault and its value."""
    try:
        return CompletionRequest.model_validate_json(body)
    except ValidationError as error:
        raise _invalid(error.errors(include_url=False, include_context=False)) from None


def _invalid(details: list[ErrorDetails]) -> InvalidRequest:
    """The first error counts; for a field with alternatives, say what the field takes."""
    detail = details[0]
    kind, location = detail["type"], detail["loc"]
    if kind == "json_invalid":
        return InvalidRequest(f"the body is not valid JSON: {detail['msg'].removeprefix('Invalid JSON: ')}")
    if not location:
        return InvalidRequest(f"the body must be a JSON object, got {_short(detail['input'])}")
    name = str(location[0])
    if kind == "extra_forbidden":
        path = ".".join(map(str, location))
        return InvalidRequest(f"unknown field {path!r}", param=path)
    if kind == "missing":
        return InvalidRequest(f"the field {name!r} is required", param=name)
    if name == "prompt":
        return InvalidRequest(
            "prompt must be a string, a list of strings, a list of token ids, or a list of lists of token ids "
            f"(ids are integers from 0 to {2**31 - 1}): {detail['msg']}, got {_short(detail['input'])}",
            param=name,
        )
    if name == "stop":
        return InvalidRequest(
            f"stop must be a non-empty string or a list of at most {MAX_STOP_STRINGS} of them, "
            f"got {_short(detail['input'])}",
            param=name,
        )
    return InvalidRequest(f"{name}: {detail['msg']}, got {_short(detail['input'])}", param=name)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
