"""Our arms: the runners, as the router calls them."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.random_pair import RandomPair
from benchmarks.round.points import Round
from benchmarks.round.timed import Stopwatch, Timed
from dflash_core.contracts import (
    ContextChunk,
    ContextStatus,
    DraftBlock,
    DraftTree,
    Outcome,
    OutcomeStatus,
    Prefill,
    RoundRequest,
    SamplingParams,
    SequenceKey,
    TreeRows,
)
from dflash_core.raw_tensor import to_raw
from dflash_core.runners.settings import DrafterSettings, TargetSettings

KV_BLOCK_SIZE = 16
APPENDED = 4  # tokens whose features a drafter gets for each sequence before it drafts
_DRAFTER = "a drafter"  # has an address: so each round also hands the features of its committed tokens to the host
_GREEDY = SamplingParams()
_FILLED_TOGETHER = 2048  # features of one chunk


class OurTarget:
    """A target runner, and sequences on it whose context was filled by real prefill rounds."""

    def __init__(self, pair: RandomPair, num_tokens: int, max_model_len: int) -> None:
        """Has blocks for `num_tokens` of all sequences together. Raises `torch.OutOfMemoryError`."""
        self._device, self._vocab_size = pair.device, pair.shape.vocab_size
        self._max_rows = TargetSettings.model_fields["max_rows"].default
        own = {"num_blocks": blocks_for(num_tokens + self._max_rows), "max_model_len": max_model_len}
        self._runner = pair.target_runner(TargetSettings.model_validate(_settings(pair) | own))
        self._rng = np.random.default_rng(0)
        self._num_rounds = 0
        self._keys: list[SequenceKey] = []
        self.context = 0  # tokens of each sequence
        self.roots: list[int] = []

    def start(self, batch: int, context: int) -> None:
        """Forgets all sequences and prefills others."""
        self._runner.release_all()
        self._keys = [SequenceKey(f"sequence {i}", 1) for i in range(batch)]
        self.roots = [self._prefill(key, context) for key in self._keys]
        self.context = context

    def run(self, round_: Round, trees: Sequence[DraftTree]) -> Timed:
        """`trees` belong to `roots`. Call to result; the work of the router is not in it."""
        self._num_rounds += 1
        request = RoundRequest(
            self._num_rounds,
            prefills=self._joiner(round_.prefill_rows),
            trees=tuple(TreeRows(key, self.context, tree) for key, tree in zip(self._keys, trees, strict=True)),
        )
        with Stopwatch(self._device) as watch:
            result = self._runner.run_round(request).result
        outcomes = [_sound(outcome) for outcome in result.outcomes][len(request.prefills) :]
        timed = Timed(watch.ms, sum(o.num_accepted for o in outcomes), self.context, result.stage_times_us)
        self.roots = [outcome.bonus_token for outcome in outcomes]
        contexts = {outcome.cached_len for outcome in outcomes}
        if len(contexts) > 1:
            raise RuntimeError(f"equal trees were accepted to different lengths {sorted(contexts)}: a wrong choice")
        (self.context,) = contexts
        return timed

    def _joiner(self, num_rows: int) -> tuple[Prefill, ...]:
        """The first rows of another prompt. Each attempt replaces the one before, so that every round is alike."""
        if num_rows == 0:
            return ()
        key = SequenceKey("joiner", self._num_rounds)
        return (Prefill(key, self._tokens(num_rows), 0, False, 2 * num_rows, _GREEDY, _DRAFTER),)

    def _prefill(self, key: SequenceKey, context: int) -> int:
        """Returns the first root."""
        token_ids = self._tokens(context)
        root = -1
        for start in range(0, context, self._max_rows):
            chunk = token_ids[start : start + self._max_rows]
            is_last = start + self._max_rows >= context
            prefill = Prefill(key, chunk, start, is_last, context, _GREEDY, _DRAFTER, features_from=context)
            (outcome,) = self._runner.run_round(RoundRequest(0, prefills=(prefill,))).result.outcomes
            root = _sound(outcome).bonus_token
        return root

    def _tokens(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        return self._rng.integers(0, self._vocab_size, count).astype(np.int32)


class OurDrafter:
    """A drafter runner, and sequences on it that have random context."""

    def __init__(self, pair: RandomPair, num_tokens: int) -> None:
        """Has blocks for `num_tokens` of all sequences together. Raises `torch.OutOfMemoryError`."""
        self._pair = pair
        own = {"num_blocks": blocks_for(num_tokens)}
        self._runner = pair.drafter_runner(DrafterSettings.model_validate(_settings(pair) | own))
        self._keys: list[SequenceKey] = []
        self._context = 0
        self._features = torch.randn(_FILLED_TOGETHER, pair.shape.hidden_size).to(pair.dtype)

    def start(self, batch: int, context: int) -> None:
        """Forgets all sequences and fills others."""
        self._runner.release_all()
        self._keys = [SequenceKey(f"sequence {i}", 1) for i in range(batch)]
        self._context = 0
        for key in self._keys:
            self._runner.open(key, 0)
        while self._context < context:
            self._append(min(_FILLED_TOGETHER, context - self._context))

    def run(self) -> Timed:
        context = self._context
        with Stopwatch(self._pair.device) as watch:
            begin = time.perf_counter()
            self._append(APPENDED)
            append_us = round((time.perf_counter() - begin) * 1e6)  # of the host
            blocks = [DraftBlock(key, 1, self._context, _GREEDY) for key in self._keys]
            drafts = self._runner.draft(blocks)
        assert all(len(draft.token_ids) for draft in drafts), "a block was not drafted"
        return Timed(watch.ms, context=context, stage_us={"append": append_us} | self._runner.stage_times_us)

    def _append(self, count: int) -> None:
        """To every sequence, as bytes from the target."""
        raw = to_raw(self._features[:count])
        acks = self._runner.append_context([ContextChunk(key, self._context, raw) for key in self._keys])
        self._context += count
        for ack in acks:
            assert (ack.status, ack.context_len) == (ContextStatus.OK, self._context), ack


def blocks_for(num_tokens: int) -> int:
    return -(-num_tokens // KV_BLOCK_SIZE)


def _settings(pair: RandomPair) -> dict[str, object]:
    return {"device": pair.device.type, "kv_block_size": KV_BLOCK_SIZE}


def _sound(outcome: Outcome) -> Outcome:
    if outcome.status is not OutcomeStatus.OK:
        raise RuntimeError(f"{outcome.key} failed in a benchmark's round: {outcome.status.value}, {outcome.message}")
    return outcome
