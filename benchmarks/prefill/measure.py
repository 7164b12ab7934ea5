"""The experiment: streams decode, a long prompt comes, and everyone's tokens are timed."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.prefill.arrivals import Arrivals, Gaps, gaps_ms
from benchmarks.random_pair import PairShape, RandomPair
from cluster.requests import GenerationRequest, Strategy
from cluster.router import Router, RouterSettings
from cluster.transports.in_process import InProcessContextSink, InProcessDrafter, InProcessTarget
from dflash_core.contracts import SamplingParams
from dflash_core.runners.settings import DrafterSettings, TargetSettings

_KV_BLOCK_SIZE = 16
_ROUND_TIMEOUT_MS = 600_000  # a whole prompt in one round may take long
_SETTLED, _BEFORE = 4, 24  # rounds of the streams until measuring begins, and until the prompt comes
_LONG = "long prompt"


@dataclass(frozen=True, slots=True)
class Load:
    """`num_streams` sequences with `stream_tokens` of context each decode with trees of `tree_budget` nodes when a
    prompt of `prompt_tokens` arrives."""

    num_streams: int
    stream_tokens: int
    prompt_tokens: int
    tree_budget: int

    @property
    def max_tree_rows(self) -> int:
        return self.num_streams * (self.tree_budget + 1)

    def output_tokens(self, smallest_chunk: int) -> int:
        """That a stream must be able to write: one a round, and more where a draft is right by accident."""
        return 2 * (_SETTLED + _BEFORE + -(-self.prompt_tokens // smallest_chunk)) + 64


@dataclass(frozen=True, slots=True)
class Passage:
    """One long prompt's way through: seconds as `time.perf_counter`."""

    submitted: float
    first_token: float
    before: list[float]  # gaps of all streams, milliseconds
    during: list[float]


@dataclass(slots=True)
class Finding:
    """All passages under one chunk size; `missing` says why there are none."""

    chunk_tokens: int
    passages: list[Passage] = field(default_factory=list)
    missing: str | None = None

    def as_dict(self) -> dict[str, Any]:
        if self.missing is not None:
            return {"prefill_chunk_tokens": self.chunk_tokens, "missing": self.missing}
        return {
            "prefill_chunk_tokens": self.chunk_tokens,
            "first_token_ms": [(one.first_token - one.submitted) * 1e3 for one in self.passages],
            "median_first_token_ms": self.median_first_token_ms,
            "gaps_before_ms": asdict(self.before),
            "gaps_during_ms": asdict(self.during),
        }

    @property
    def median_first_token_ms(self) -> float:
        return statistics.median((one.first_token - one.submitted) * 1e3 for one in self.passages)

    @property
    def before(self) -> Gaps:
        return Gaps.of(gap for one in self.passages for gap in one.before)

    @property
    def during(self) -> Gaps:
        return Gaps.of(gap for one in self.passages for gap in one.during)


class Stage:
    """One target and one drafter with random weights, and for each chunk size a router in front of them."""

    def __init__(
        self, shape: PairShape, load: Load, chunks: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> None:
        """Raises `torch.OutOfMemoryError`."""
        self._load, self._vocab_size = load, shape.vocab_size
        self._output_tokens = load.output_tokens(min(chunks))
        longest = max(load.prompt_tokens, load.stream_tokens + self._output_tokens) + shape.draft_block_size
        tokens = load.prompt_tokens + load.num_streams * (load.stream_tokens + self._output_tokens)
        blocks = max(tokens, longest) // _KV_BLOCK_SIZE + load.num_streams + 2
        pair = RandomPair(shape, longest, dtype, device)
        common = {"device": device.type, "kv_block_size": _KV_BLOCK_SIZE, "num_blocks": blocks}
        rows = {"max_rows": max(chunks) + load.max_tree_rows, "max_tree_rows": load.max_tree_rows}
        self._runner = pair.target_runner(TargetSettings.model_validate(common | rows))
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="models")
        drafter = pair.drafter_runner(DrafterSettings.model_validate(common))
        self._drafter = InProcessDrafter(drafter, self._executor)
        self._target = InProcessTarget(self._runner, InProcessContextSink(self._drafter), self._executor)
        self._rng = np.random.default_rng(0)

    async def passage(self, chunk_tokens: int) -> Passage:
        """Streams settle, decode a while, and go on decoding until the long prompt has its first token."""
        router = self._router(chunk_tokens)
        arrivals = Arrivals()
        try:
            return await self._observe(router, arrivals)
        finally:
            router.release_client(arrivals)
            while self._runner.num_sequences:  # the releases run by themselves
                await asyncio.sleep(0.001)
            await router.close()

    async def _observe(self, router: Router, arrivals: Arrivals) -> Passage:
        load = self._load
        names = [f"stream {i}" for i in range(load.num_streams)]
        for name in names:
            router.submit(self._request(name, load.stream_tokens, self._output_tokens), arrivals)

        def have(num_events: int) -> bool:
            return all(len(arrivals.times[name]) >= num_events for name in names)

        await arrivals.until(lambda: have(_SETTLED))
        settled = time.perf_counter()
        await arrivals.until(lambda: have(_SETTLED + _BEFORE))
        submitted = time.perf_counter()
        router.submit(self._request(_LONG, load.prompt_tokens, 1), arrivals)
        await arrivals.until(lambda: bool(arrivals.times[_LONG]))
        (first_token,) = arrivals.times[_LONG]
        streams = [arrivals.times[name] for name in names]
        return Passage(
            submitted,
            first_token,
            [gap for times in streams for gap in gaps_ms((t for t in times if t <= submitted), settled, submitted)],
            [gap for times in streams for gap in gaps_ms(times, submitted, first_token)],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._executor.shutdown()

    def _router(self, chunk_tokens: int) -> Router:
        router = Router(
            RouterSettings(
                strategy=Strategy.DRAFT_TREES,
                tree_budget=self._load.tree_budget,
                prefill_chunk_tokens=chunk_tokens,
                # The prompt's chunks in the streams' own rounds: what is measured is what one costs the other there.
                micro_batches=1,
                # Sharing one thread with the target, a drafter is never a straggler.
                draft_timeout_ms=_ROUND_TIMEOUT_MS,
                always_waits=True,
                round_timeout_ms=_ROUND_TIMEOUT_MS,
            )
        )
        router.add_target(self._target)
        router.add_drafter(self._drafter)
        return router

    def _request(self, name: str, num_tokens: int, max_tokens: int) -> GenerationRequest:
        token_ids: npt.NDArray[np.int32] = self._rng.integers(0, self._vocab_size, num_tokens).astype(np.int32)
        return GenerationRequest(name, token_ids, num_tokens, max_tokens, SamplingParams())
