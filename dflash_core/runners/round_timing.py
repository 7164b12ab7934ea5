"""What a target's rounds of n rows take, by running some: prompts of a few tokens, and trees on them."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np

from dflash_core.contracts import (
    DraftTree,
    OutcomeStatus,
    Prefill,
    RoundRequest,
    RoundResult,
    SamplingParams,
    SequenceKey,
    TargetInfo,
    TreeRows,
)
from dflash_core.errors import CheckpointMismatch
from dflash_core.runners.self_timing import REPETITIONS, StepTimes, climb, doubling

_HOST_BUDGET_S = 0.35
_PADDED_BUDGET_S = 1.5  # where sizes are padded start-up compiles and captures, which takes far longer than this

_TREE_ROWS = 16
"""Rows of a tree; larger rounds have more trees. Real rounds are of many sequences, each with a tree of this order."""

_PROMPT_TOKENS = 8  # few: these are times of rows without context

_MAX_TOKENS = _PROMPT_TOKENS + 2 * REPETITIONS + 1
"""A sequence's tokens in the end: every round commits its root and at most one of the root's children."""


def time_rounds(run_round: Callable[[RoundRequest], RoundResult], info: TargetInfo, free_blocks: int) -> StepTimes:
    """`TargetInfo.round_times_us`, up to what a budget of time, `max_tree_rows` and the free blocks allow.

    Empty where a sequence cannot have the few tokens that this takes. Holds no sequence afterwards. Must run without a
    prefix cache: of prompts that are found nothing is computed. Raises `CheckpointMismatch` where rows do not run.
    """
    if info.max_model_len < _MAX_TOKENS or info.max_rows < _PROMPT_TOKENS:
        return ()
    num_sequences = free_blocks // -(-_MAX_TOKENS // info.kv_block_size)
    largest = min(info.max_tree_rows, num_sequences * _TREE_ROWS)
    sizes = [size for size in info.row_sizes if size <= largest] if info.row_sizes else doubling(largest)
    budget_s = _PADDED_BUDGET_S if info.row_sizes else _HOST_BUDGET_S
    return climb(sizes, _RoundTimer(run_round, info).time_rounds_of, budget_s)


class _RoundTimer:
    def __init__(self, run_round: Callable[[RoundRequest], RoundResult], info: TargetInfo) -> None:
        self._run_round = run_round
        self._info = info

    def time_rounds_of(self, num_rows: int) -> list[float]:
        """Seconds of `REPETITIONS` rounds with trees of so many rows together."""
        counts = [min(_TREE_ROWS, num_rows - first) for first in range(0, num_rows, _TREE_ROWS)]
        keys = tuple(SequenceKey(f"self-timing-{index}", 0) for index in range(len(counts)))
        result = self._checked(RoundRequest(0, prefills=tuple(map(self._prefill, keys))), num_rows)
        seconds: list[float] = []
        for _ in range(REPETITIONS):
            trees = tuple(
                TreeRows(outcome.key, outcome.cached_len, _star(outcome.bonus_token, count))
                for outcome, count in zip(result.outcomes, counts, strict=True)
            )
            begin = perf_counter()
            result = self._run_round(RoundRequest(0, trees=trees))
            seconds.append(perf_counter() - begin)
            self._check(result, num_rows)
        self._run_round(RoundRequest(0, releases=keys))
        return seconds

    def _prefill(self, key: SequenceKey) -> Prefill:
        token_ids = np.arange(_PROMPT_TOKENS, dtype=np.int32) % self._info.vocab_size
        # Features are for some drafter, as they are in a real round; nobody sends what is made of them.
        address = "self-timing" if self._info.fc_fingerprint else ""
        return Prefill(key, token_ids, 0, True, _PROMPT_TOKENS, SamplingParams(), drafter_address=address)

    def _checked(self, request: RoundRequest, num_rows: int) -> RoundResult:
        result = self._run_round(request)
        self._check(result, num_rows)
        return result

    def _check(self, result: RoundResult, num_rows: int) -> None:
        for outcome in result.outcomes:
            if outcome.status is not OutcomeStatus.OK:
                raise CheckpointMismatch(f"{self._info.model} cannot run {num_rows} rows: {outcome.message}")


def _star(root: int, num_rows: int) -> DraftTree:
    """The root and children of it, which differ."""
    token_ids = np.arange(-1, num_rows - 1, dtype=np.int32)
    token_ids[0] = root
    return DraftTree(token_ids, np.minimum(np.arange(num_rows, dtype=np.int32), 1))
