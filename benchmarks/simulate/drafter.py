"""A drafter that proposes what traces say, once it has the context, and takes as long as tables say."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np

from benchmarks.simulate.features import Span
from benchmarks.simulate.hardware import FINGERPRINT, Hardware
from benchmarks.simulate.meter import Meter
from benchmarks.simulate.playback import Playback, Script
from dflash_core.contracts import Draft, DraftBlock, DrafterInfo, DraftRequest, DraftResult, PackedDrafts, SequenceKey

_NO_IDS, _NO_SCORES = np.empty((0, 0), np.int32), np.empty((0, 0), np.float32)


@dataclass(slots=True)
class _Context:
    key: SequenceKey
    length: int


@dataclass(slots=True, eq=False)
class _Waiting:
    """A request whose blocks lack context: by sequence id the length that each needs."""

    needs: dict[str, int]
    complete: asyncio.Future[None] = field(init=False)

    def __post_init__(self) -> None:
        self.complete = asyncio.get_running_loop().create_future()


class SimulatedDrafter:
    """Implements `dflash_core.contracts.Drafter`. Drafts one request after another, in the order of their contexts'
    completion."""

    def __init__(
        self, address: str, hardware: Hardware, playback: Playback, meter: Meter, rng: np.random.Generator
    ) -> None:
        self._hardware = hardware
        self._playback = playback
        self._meter = meter
        self._rng = rng
        self._contexts: dict[str, _Context] = {}
        self._waiting: dict[_Waiting, None] = {}
        self._free_at = 0.0
        self.busy_s = 0.0  # until reset by whoever reads it
        self.info = DrafterInfo(
            model=hardware.name,
            draft_block_size=playback.depth + 1,
            num_candidates=playback.num_candidates,
            hidden_size=1,
            vocab_size=playback.vocab_size,
            num_target_layers=1,
            fingerprint=FINGERPRINT,
            address=address,
            draft_times_us=hardware.draft_times.measured_us,
        )

    @property
    def num_sequences(self) -> int:
        return len(self._contexts)

    def append_context(self, spans: list[Span]) -> None:
        """Implements `FeatureReceiver`. What does not join on to what is there is dropped."""
        with self._meter.outside():
            for key, start, end in spans:
                context = self._contexts.get(key.sequence_id)
                if context is not None and context.key == key and start <= context.length:
                    context.length = max(context.length, end)
            for waiting in list(self._waiting):
                self._wake(waiting)

    async def draft(self, request: DraftRequest) -> DraftResult:
        latency_s = self._hardware.network.latency_s
        await asyncio.sleep(latency_s)
        with self._meter.outside():
            self._release_and_open(request)
        if not request.blocks:
            await asyncio.sleep(latency_s)
            return DraftResult(request.batch_id, ())
        await self._context_of(request)
        loop = asyncio.get_running_loop()
        with self._meter.outside():
            duration_s = self._hardware.draft_times.seconds(len(request.blocks), self._rng)
            self._free_at = max(self._free_at, loop.time()) + duration_s
            self.busy_s += duration_s
        await asyncio.sleep(self._free_at - loop.time() + latency_s)
        with self._meter.outside():
            drafts = PackedDrafts.of([*map(self._draft, request.blocks)])
        return DraftResult(request.batch_id, drafts, {"forward": round(duration_s * 1e6)})

    def _release_and_open(self, request: DraftRequest) -> None:
        for key in request.releases:
            context = self._contexts.get(key.sequence_id)
            if context is not None and context.key.attempt <= key.attempt:
                del self._contexts[key.sequence_id]
        for key, context_len in request.opens:
            context = self._contexts.get(key.sequence_id)
            if context is None:
                self._contexts[key.sequence_id] = _Context(key, 0)
            elif context.key.attempt < key.attempt:
                self._contexts[key.sequence_id] = _Context(key, min(context.length, context_len))

    async def _context_of(self, request: DraftRequest) -> None:
        """Returns when all contexts are complete, or after `wait_ms`."""
        with self._meter.outside():
            waiting = _Waiting({block.key.sequence_id: block.context_len for block in request.blocks})
            self._waiting[waiting] = None
            self._wake(waiting)
        try:
            async with asyncio.timeout(request.wait_ms / 1e3):
                await waiting.complete
        except TimeoutError:
            self._waiting.pop(waiting, None)

    def _wake(self, waiting: _Waiting) -> None:
        """A sequence that is not open is not waited for: its block is answered with an error."""
        contexts = self._contexts
        waiting.needs = {
            sequence_id: length
            for sequence_id, length in waiting.needs.items()
            if sequence_id in contexts and contexts[sequence_id].length < length
        }
        if not waiting.needs:
            self._waiting.pop(waiting, None)
            if not waiting.complete.done():
                waiting.complete.set_result(None)

    def _draft(self, block: DraftBlock) -> Draft:
        context = self._contexts.get(block.key.sequence_id)
        if context is None or context.key != block.key:
            return Draft(block.key, block.context_len, _NO_IDS, _NO_SCORES, error="the sequence is not open")
        if context.length < block.context_len:
            return Draft(block.key, block.context_len, _NO_IDS, _NO_SCORES, missing_from=context.length)
        token_ids, scores = self._playback.draft(Script.of_seed(block.sampling.seed), block.context_len)
        return Draft(block.key, block.context_len, token_ids, scores)
