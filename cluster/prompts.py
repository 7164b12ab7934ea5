"""What callers of the offline engine pass, as requests to the router."""

from __future__ import annotations

import operator
import secrets
from collections.abc import Sequence
from typing import SupportsIndex, cast

import numpy as np
from tokenizers import Tokenizer

from cluster.outputs import Options
from cluster.requests import GenerationRequest, LatencyClass
from dflash_core.contracts import SamplingParams, TargetInfo, TokenIds
from dflash_core.errors import InvalidRequest
from dflash_core.sampling.noise import output_seed

Prompt = str | Sequence[int]


def as_prompts(prompt: Prompt | Sequence[Prompt]) -> tuple[list[Prompt], bool]:
    """The prompts, and whether the caller gave several. Raises `InvalidRequest` for an empty list."""
    if isinstance(prompt, str):
        return [prompt], False
    if not len(prompt):
        raise InvalidRequest("the prompt is empty: give at least one token or one prompt", param="prompt")
    if isinstance(prompt[0], SupportsIndex):  # an int, or numpy's
        return [cast(Sequence[int], prompt)], False
    return list(cast(Sequence[Prompt], prompt)), True


def as_token_ids(prompt: Prompt, tokenizer: Tokenizer) -> TokenIds:
    """Raises `InvalidRequest` for what is neither text nor a list of token ids."""
    if isinstance(prompt, str):
        return np.asarray(tokenizer.encode(prompt).ids, dtype=np.int32)
    try:
        return np.asarray([operator.index(token_id) for token_id in prompt], dtype=np.int32)
    except (TypeError, OverflowError):
        raise InvalidRequest(f"a prompt must be a string or token ids, got {prompt!r}", param="prompt") from None


def make_requests(
    call_id: int, prompts: list[Prompt], max_length: int, options: Options, tokenizer: Tokenizer, info: TargetInfo
) -> list[GenerationRequest]:
    """One per prompt, in their order. `call_id` makes their ids unique. Raises `InvalidRequest`."""
    if max_length < 1:
        raise InvalidRequest(f"max_length must be at least 1 new token, got {max_length}", param="max_length")
    if isinstance(options.stop, str):
        raise InvalidRequest(f"stop must be a list of strings, got the string {options.stop!r}", param="stop")
    if "" in options.stop:
        raise InvalidRequest("stop must not hold an empty string", param="stop")
    latency_class = _as_latency_class(options.latency_class)
    seed = secrets.randbits(64) if options.seed is None else options.seed
    requests: list[GenerationRequest] = []
    for index, prompt in enumerate(prompts):
        token_ids = as_token_ids(prompt, tokenizer)
        requests.append(
            GenerationRequest(
                sequence_id=f"{call_id}-{index}",
                token_ids=token_ids,
                num_prompt_tokens=len(token_ids),
                max_tokens=max_length,
                sampling=SamplingParams(
                    temperature=options.temperature,
                    top_k=options.top_k,
                    top_p=options.top_p,
                    min_p=options.min_p,
                    seed=output_seed(seed, index, 0),
                ),
                stop_token_ids=() if options.ignore_eos else info.eos_token_ids,
                tree_budget=options.tree_budget,
                timeout_ms=options.timeout_ms,
                latency_class=latency_class,
                priority=options.priority,
            )
        )
    return requests


def _as_latency_class(name: str | LatencyClass) -> LatencyClass:
    """Raises `InvalidRequest` for a name that there is not."""
    try:
        return LatencyClass(name)
    except ValueError:
        known = ", ".join(repr(latency_class.value) for latency_class in LatencyClass)
        raise InvalidRequest(f"latency_class must be one of {known}, got {name!r}", param="latency_class") from None
