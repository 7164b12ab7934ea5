"""One client request from validated fields to finished text, whichever protocol it came by.

A `GenerationJob` holds one or more prompts and how they are decoded. `GenerationService.generate` turns it into one
`GenerationRequest` per output, runs them through the routers, decodes tokens to text, cuts at stop strings, and
counts. HTTP and gRPC are two thin skins over it.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from cluster.requests import EventSink, FinishReason, GenerationRequest, TokenEvent
from cluster.text import StreamDecoder
from deployments.border_settings import LimitSettings
from deployments.job import GenerationJob, JobStatistics, TextDelta
from dflash_core.contracts import TargetInfo, TokenIds
from dflash_core.errors import DeadlineExceeded, InvalidRequest, Overloaded, PromptTooLong, Unavailable, UnknownModel
from dflash_core.sampling.noise import output_seed

CONTEXT_TOKENS = 16  # of the prompt, more than decoders look back
FIRST_TARGET_POLL_S = 0.05
LONG_TEXT_CHARS = 4096  # from here on a text is tokenised on a thread, so that other streams go on


class Routers(Protocol):
    """What this module needs of `cluster.transports`' pool of routers."""

    @property
    def info(self) -> TargetInfo | None:
        """Of the targets, once a router that has one is connected; None while no round can run."""
        ...

    def submit(self, request: GenerationRequest, sink: EventSink) -> None: ...

    def cancel(self, sequence_id: str) -> None: ...


class _Output:
    """One output while it is written."""

    def __init__(self, index: int, sequence_id: str, decoder: StreamDecoder, counts_prompt: bool) -> None:
        self.index = index
        self.counts_prompt = counts_prompt  # the first choice of its prompt, whose tokens count once
        self.sequence_id = sequence_id
        self.decoder = decoder
        self.num_tokens = 0
        self.first_token_at = 0.0
        self.is_done = False


class _Queue:
    """The sink of one job: hands a round's events to whoever awaits them."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[list[TokenEvent]] = asyncio.Queue()

    def put(self, events: list[TokenEvent]) -> None:
        self._queue.put_nowait(events)

    async def get(self) -> list[TokenEvent]:
        return await self._queue.get()


class GenerationService:
    """Everything the gateway does with a request, apart from the protocol."""

    def __init__(
        self,
        routers: Routers,
        tokenizer: Tokenizer,
        model_name: str,
        limits: LimitSettings,
        first_target_timeout_s: float = 0.0,
    ) -> None:
        """`first_target_timeout_s`: how long a request waits for the first target, while the application starts."""
        self.routers = routers
        self._first_target_timeout_s = first_target_timeout_s
        self.tokenizer = tokenizer
        self.model_name = model_name
        self.limits = limits
        self.num_open_outputs = 0
        self.num_finished_outputs = 0  # those that came to their own end
        self._last_info: TargetInfo | None = None

    @property
    def is_ready(self) -> bool:
        """Whether a round can run now."""
        return self.routers.info is not None

    @property
    def target_info(self) -> TargetInfo | None:
        """As last told, so that requests may wait for a target to come back; None as long as none was ever there."""
        self._last_info = self.routers.info or self._last_info
        return self._last_info

    @property
    def max_model_len(self) -> int | None:
        """Tokens of prompt and output together; None while no target is known."""
        info = self.target_info
        return None if info is None else info.max_model_len

    def check_model(self, name: str | None) -> None:
        if name is not None and name != self.model_name:
            raise UnknownModel(f"model {name!r} is not served here; {self.model_name!r} is", param="model")

    async def generate(self, job: GenerationJob, statistics: JobStatistics) -> AsyncGenerator[TextDelta, None]:
        """Yields text as it is decoded and fills `statistics`; the last delta of each output has a finish_reason.

        Closing the generator cancels what still runs. Raises any `DFlashError`; one output's error ends the job.
        """
        self.check_job(job)
        self._check_room(job)
        self.num_open_outputs += job.num_outputs
        try:
            async with aclosing(self._generate(job, statistics)) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            self.num_open_outputs -= job.num_outputs

    async def _generate(self, job: GenerationJob, statistics: JobStatistics) -> AsyncGenerator[TextDelta, None]:
        requests = await self._requests(job)
        outputs = {
            request.sequence_id: _Output(
                index,
                request.sequence_id,
                StreamDecoder(self.tokenizer, job.stop, context_ids=request.token_ids[-CONTEXT_TOKENS:].tolist()),
                counts_prompt=index % job.num_choices == 0,
            )
            for index, request in enumerate(requests)
        }
        statistics.prompt_tokens = sum(request.num_prompt_tokens for request in requests[:: job.num_choices])
        queue = _Queue()
        try:
            for request in requests:
                self.routers.submit(request, queue)
            num_open = len(outputs)
            while num_open:
                for event in await queue.get():
                    output = outputs[event.sequence_id]
                    if output.is_done:
                        continue
                    if event.error is not None:
                        output.is_done = True
                        raise event.error
                    delta = self._delta(output, event, statistics)
                    if output.is_done and event.finish_reason is None:
                        self.routers.cancel(output.sequence_id)  # a stop string: the router does not know it
                    num_open -= output.is_done
                    if delta.text or delta.token_ids or delta.finish_reason is not None:
                        yield delta
        finally:
            for output in outputs.values():
                if not output.is_done:
                    self.routers.cancel(output.sequence_id)

    def _delta(self, output: _Output, event: TokenEvent, statistics: JobStatistics) -> TextDelta:
        """Applies one round's tokens to an output, and ends it at a stop string."""
        now = time.monotonic()
        text, token_ids, hit_stop = _decode(output.decoder, event)
        if output.counts_prompt:
            statistics.cached_tokens += event.cached_tokens
        if token_ids:
            if output.num_tokens == 0:
                output.first_token_at = now
                if statistics.output_tokens == 0:
                    statistics.time_to_first_token_ms = (now - statistics.started_at) * 1e3
            else:
                statistics.verified_trees += 1
                statistics.tree_nodes += event.num_tree_nodes
                statistics.decoded_tokens += len(token_ids)
            statistics.rounds += 1
            statistics.output_tokens += len(token_ids)
            output.num_tokens += len(token_ids)
        finish = FinishReason.STOP if hit_stop else event.finish_reason
        if finish is not None:
            output.is_done = True
            self.num_finished_outputs += 1
            statistics.decode_ms += (now - output.first_token_at) * 1e3
        return TextDelta(output.index, text, tuple(token_ids), finish)

    def check_job(self, job: GenerationJob) -> None:
        """What can be said before anything is made of a job: its outputs may be more than there is memory for.

        Raises `UnknownModel`, `InvalidRequest`.
        """
        self.check_model(job.model)
        if job.tree_budget is not None and job.tree_budget > self.limits.max_tree_budget:
            raise InvalidRequest(
                f"tree_budget must be at most {self.limits.max_tree_budget}, got {job.tree_budget}", param="tree_budget"
            )
        if job.num_outputs > self.limits.max_outputs_per_request:
            raise InvalidRequest(
                f"{len(job.prompts)} prompts times n={job.num_choices} make {job.num_outputs} outputs, the limit is "
                f"{self.limits.max_outputs_per_request}",
                param="n" if job.num_choices > 1 else "prompt",
            )

    async def _requests(self, job: GenerationJob) -> list[GenerationRequest]:
        """One request per output, prompts first. Raises `InvalidRequest`, `PromptTooLong`, `Unavailable`."""
        arrived_at = time.monotonic()
        info = await self._first_target(job.timeout_ms)
        prompts = [await self._tokenize(prompt) for prompt in job.prompts]
        for prompt in prompts:
            self._check_prompt(prompt, job.max_tokens, info)
        # What has passed since the request came counts; of the rest, 1 ms at least: 0 would mean no deadline at all.
        spent_ms = int((time.monotonic() - arrived_at) * 1e3)
        timeout_ms = max(1, job.timeout_ms - spent_ms) if job.timeout_ms else 0
        name = uuid.uuid4().hex
        return [
            GenerationRequest(
                sequence_id=f"{name}-{prompt_index}-{choice_index}",
                token_ids=prompt,
                num_prompt_tokens=len(prompt),
                max_tokens=job.max_tokens,
                sampling=replace(job.sampling, seed=output_seed(job.sampling.seed, prompt_index, choice_index)),
                stop_token_ids=info.eos_token_ids,
                tree_budget=job.tree_budget,
                timeout_ms=timeout_ms,
                latency_class=job.latency_class,
                priority=job.priority,
            )
            for prompt_index, prompt in enumerate(prompts)
            for choice_index in range(job.num_choices)
        ]

    def _check_room(self, job: GenerationJob) -> None:
        """Whatever waits here takes memory, wherever it waits."""
        if self.num_open_outputs + job.num_outputs > self.limits.max_open_outputs:
            raise Overloaded(
                f"{self.num_open_outputs} outputs are open at this gateway and {job.num_outputs} more are wanted, the "
                f"limit is {self.limits.max_open_outputs}"
            )

    async def _first_target(self, timeout_ms: int) -> TargetInfo:
        """`timeout_ms`: of the request, 0 for none."""
        began = time.monotonic()
        while (info := self.target_info) is None:
            waited_s = time.monotonic() - began
            if timeout_ms and waited_s * 1e3 >= timeout_ms:
                raise DeadlineExceeded(f"timeout_ms {timeout_ms} ran out: no target has been connected yet")
            if waited_s >= self._first_target_timeout_s:
                raise Unavailable("no target has been connected yet: the application is starting")
            await asyncio.sleep(FIRST_TARGET_POLL_S)
        return info

    async def _tokenize(self, prompt: str | list[int]) -> TokenIds:
        if isinstance(prompt, str):
            if len(prompt) < LONG_TEXT_CHARS:
                ids = self.tokenizer.encode(prompt).ids
            else:
                ids = (await asyncio.to_thread(self.tokenizer.encode, prompt)).ids
        else:
            ids = prompt
        return np.asarray(ids, dtype=np.int32)

    def _check_prompt(self, prompt: TokenIds, max_tokens: int, info: TargetInfo) -> None:
        """The router checks the same against its targets; here a wrong request costs no message."""
        if not len(prompt):
            raise InvalidRequest("prompt is empty: give at least one token", param="prompt")
        lowest, highest = int(prompt.min()), int(prompt.max())
        if lowest < 0 or highest >= info.vocab_size:
            wrong = lowest if lowest < 0 else highest
            raise InvalidRequest(f"token id {wrong} is outside the vocabulary of {info.vocab_size}", param="prompt")
        limit = info.max_model_len
        if len(prompt) + max_tokens > limit:
            raise PromptTooLong(
                f"prompt ({len(prompt)} tokens) and max_tokens ({max_tokens}) make {len(prompt) + max_tokens}, more "
                f"than the model's context of {limit}",
                param="prompt" if len(prompt) >= limit else "max_tokens",
            )


def _decode(decoder: StreamDecoder, event: TokenEvent) -> tuple[str, list[int], bool]:
    """The event's text, the tokens it took, and whether a stop string came.

    Token by token, so that an output ends at the same token however many come in a round.
    """
    token_ids: list[int] = event.token_ids.tolist()
    texts = []
    for index, token_id in enumerate(token_ids, start=1):
        text, hit_stop = decoder.push([token_id])
        texts.append(text)
        if hit_stop:
            return "".join(texts), token_ids[:index], True
    if event.finish_reason is not None:
        text, hit_stop = decoder.push([], is_last=True)
        return "".join([*texts, text]), token_ids, hit_stop
    return "".join(texts), token_ids, False
