"""Offline generation in one process: the same router as in the cluster, over the in-process transports."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

from tokenizers import Tokenizer

from cluster.outputs import (
    DecodingOptions,
    GenerationResult,
    Options,
    Output,
    Piece,
    as_strategy,
)
from cluster.prompts import Prompt, as_prompts, make_requests
from cluster.requests import GenerationRequest, Strategy, TokenEvent
from cluster.router import RoundTimings, Router, RouterSettings
from cluster.text import StreamDecoder
from cluster.transports.in_process import InProcessContextSink, InProcessDrafter, InProcessTarget
from cluster.transports.runner_protocols import DrafterModelRunner, TargetModelRunner
from dflash_core.contracts import TargetInfo
from dflash_core.errors import Unavailable
from dflash_core.runners.settings import DrafterSettings, TargetSettings

DEFAULT_TARGET = "embedded:stdlib-6m"
DEFAULT_DRAFTER = "embedded:stdlib-6m-dflash"

_T = TypeVar("_T")


class _Queue:
    """The sink of one call."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[list[TokenEvent]] = asyncio.Queue()

    def put(self, events: list[TokenEvent]) -> None:
        self.events.put_nowait(events)


class LLMInferenceEngine:
    """Loads a pair and generates, offline, in this process.

        with LLMInferenceEngine() as engine:
            print(engine.generate("def ", max_length=50).text)

    Args:
        target_model: a folder, a Hugging Face name, or "embedded:…". drafter_model likewise; None decodes plainly.
        speculative_decoding_strategy: "block_diffusion_draft_trees", "block_diffusion" (one path) or "none".
        tree_budget: nodes per sequence and round without the root; None: as many as pay.
        target_settings, drafter_settings: device, dtype, sizes of the caches.
        router_settings: everything else that schedules; its strategy and tree_budget are those given here.

    Methods may be called from any thread, several at a time: calls share the rounds. The drafter never changes what
    is generated. What was loaded and what took how much memory is logged at level INFO under "dflash_core". Raises what
    loading raises: `CheckpointNotFound`, `CheckpointMismatch`, `UnsupportedModel`, `InvalidSettings`.
    """

    def __init__(
        self,
        target_model: str = DEFAULT_TARGET,
        drafter_model: str | None = DEFAULT_DRAFTER,
        speculative_decoding_strategy: str | Strategy = Strategy.DRAFT_TREES,
        *,
        tree_budget: int | None = None,
        target_settings: TargetSettings | None = None,
        drafter_settings: DrafterSettings | None = None,
        router_settings: RouterSettings | None = None,
    ) -> None:
        strategy = as_strategy(speculative_decoding_strategy)
        if strategy is Strategy.NONE or drafter_model is None:
            strategy, drafter_model = Strategy.NONE, None
        # Here, since these bring torch: importing `cluster` must not.
        from cluster.loading import load_pair

        pair = load_pair(
            target_model,
            drafter_model,
            target_settings or TargetSettings.model_validate({}),
            drafter_settings or DrafterSettings.model_validate({}),
        )
        self.tokenizer: Tokenizer = pair.tokenizer
        self.target_info: TargetInfo = pair.target.info
        self._target = pair.target
        self._call_ids = count(1)
        self._is_closed = False
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="models")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rounds", daemon=True)
        self._thread.start()
        settings = _engine_settings(router_settings or RouterSettings(), strategy, tree_budget)
        self._router: Router = self._run(self._start(settings, pair.target, pair.drafter))

    async def _start(
        self, settings: RouterSettings, target: TargetModelRunner, drafter: DrafterModelRunner | None
    ) -> Router:
        router = Router(settings)
        drafters = [] if drafter is None else [InProcessDrafter(drafter, self._executor)]
        router.add_target(InProcessTarget(target, InProcessContextSink(*drafters), self._executor))
        for in_process in drafters:
            router.add_drafter(in_process)
        return router

    # --- generating

    @overload
    def generate(self, prompt: str, max_length: int = 50, **options: Unpack[DecodingOptions]) -> GenerationResult: ...
    @overload
    def generate(
        self, prompt: list[int], max_length: int = 50, **options: Unpack[DecodingOptions]
    ) -> GenerationResult: ...
    @overload
    def generate(
        self,
        prompt: list[str] | list[list[int]] | list[Prompt],
        max_length: int = 50,
        **options: Unpack[DecodingOptions],
    ) -> list[GenerationResult]: ...
    def generate(
        self, prompt: Prompt | Sequence[Prompt], max_length: int = 50, **options: Unpack[DecodingOptions]
    ) -> GenerationResult | list[GenerationResult]:
        """Generates for one prompt, or for many at once: a string or token ids each.

        `max_length` counts new tokens, without the prompt. A list of prompts gives a list of results in its order.
        Raises `InvalidRequest`, `PromptTooLong`, `Overloaded`, `DeadlineExceeded`.
        """
        return self._run(self._generate(prompt, max_length, Options(**options)))

    async def agenerate(
        self, prompt: Prompt | Sequence[Prompt], max_length: int = 50, **options: Unpack[DecodingOptions]
    ) -> GenerationResult | list[GenerationResult]:
        """`generate` for callers on an event loop of their own. Cancelling it cancels the generation."""
        return await self._arun(self._generate(prompt, max_length, Options(**options)))

    def stream(self, prompt: Prompt, max_length: int = 50, **options: Unpack[DecodingOptions]) -> Iterator[str]:
        """Yields the text of one output in pieces, as it is decoded. Closing the iterator cancels the generation."""
        pieces = self._pieces(self._requests([prompt], max_length, Options(**options)), Options(**options))
        try:
            while (piece := self._run(_next_or_none(pieces))) is not None:
                if piece.text:
                    yield piece.text
        finally:
            if not self._is_closed:
                self._run(_close(pieces))

    async def astream(
        self, prompt: Prompt, max_length: int = 50, **options: Unpack[DecodingOptions]
    ) -> AsyncIterator[str]:
        """`stream` for callers on an event loop of their own."""
        pieces = self._pieces(self._requests([prompt], max_length, Options(**options)), Options(**options))
        try:
            while (piece := await self._arun(_next_or_none(pieces))) is not None:
                if piece.text:
                    yield piece.text
        finally:
            if not self._is_closed:
                await self._arun(_close(pieces))

    @property
    def timings(self) -> RoundTimings:
        """Where the rounds' time went since the last `timings.reset()`."""
        return self._router.timings

    def close(self) -> None:
        """Ends what runs with `Unavailable`, then the threads. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        asyncio.run_coroutine_threadsafe(self._router.close("the engine was closed"), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._executor.shutdown()
        self._target.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # --- on the engine's own event loop

    async def _generate(
        self, prompt: Prompt | Sequence[Prompt], max_length: int, options: Options
    ) -> GenerationResult | list[GenerationResult]:
        prompts, is_many = as_prompts(prompt)
        texts: list[list[str]] = [[] for _ in prompts]
        token_ids: list[list[int]] = [[] for _ in prompts]
        results: dict[int, GenerationResult] = {}
        async for piece in self._pieces(self._requests(prompts, max_length, options), options):
            texts[piece.index].append(piece.text)
            token_ids[piece.index] += piece.token_ids
            if piece.finish_reason is not None and piece.statistics is not None:
                text = "".join(texts[piece.index])
                results[piece.index] = GenerationResult(
                    text, token_ids[piece.index], piece.finish_reason, piece.statistics
                )
        return [results[index] for index in range(len(prompts))] if is_many else results[0]

    async def _pieces(self, requests: list[GenerationRequest], options: Options) -> AsyncGenerator[Piece]:
        """Runs requests together. Closing it, or an error in one of them, cancels all."""
        queue = _Queue()
        outputs = {
            request.sequence_id: Output(
                index,
                StreamDecoder(self.tokenizer, options.stop, request.token_ids.tolist()),
                partial(self._router.cancel, request.sequence_id, queue),
            )
            for index, request in enumerate(requests)
        }
        try:
            for request in requests:
                self._router.submit(request, queue)
            num_open = len(outputs)
            while num_open:
                for event in await queue.events.get():
                    output = outputs[event.sequence_id]
                    if output.is_done:
                        continue
                    piece = output.take(event)
                    num_open -= output.is_done
                    yield piece
        finally:
            self._router.release_client(queue)

    def _requests(self, prompts: list[Prompt], max_length: int, options: Options) -> list[GenerationRequest]:
        return make_requests(next(self._call_ids), prompts, max_length, options, self.tokenizer, self.target_info)

    # --- crossing threads

    def _run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        self._check_open(coroutine)
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C in the caller's thread ends the generation too
            raise

    async def _arun(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        self._check_open(coroutine)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))

    def _check_open(self, coroutine: Coroutine[Any, Any, _T]) -> None:
        if self._is_closed:
            coroutine.close()
            raise Unavailable("the engine is closed")


async def _next_or_none(pieces: AsyncIterator[Piece]) -> Piece | None:
    return await anext(pieces, None)


async def _close(pieces: AsyncGenerator[Piece]) -> None:
    await pieces.aclose()


def _engine_settings(settings: RouterSettings, strategy: Strategy, tree_budget: int | None) -> RouterSettings:
    """In one process a drafter is never a straggler: it waits for the same thread as the target."""
    timeout_ms = settings.round_timeout_ms
    return replace(settings, strategy=strategy, tree_budget=tree_budget, draft_timeout_ms=timeout_ms, always_waits=True)
