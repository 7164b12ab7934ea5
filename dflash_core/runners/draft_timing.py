"""What drafts of n blocks take, by making some: as many sequences, each with a few tokens of context."""

from __future__ import annotations

from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from dflash_core.contracts import ContextChunk, DraftBlock, RawTensor, SamplingParams, SequenceKey
from dflash_core.runners.self_timing import REPETITIONS, StepTimes, climb, doubling

if TYPE_CHECKING:
    from dflash_core.runners.drafter import DrafterRunner

_BUDGET_S = 0.15
_CONTEXT_TOKENS = 8  # few: these are times of blocks without context


def time_drafts(runner: DrafterRunner, max_blocks: int) -> StepTimes:
    """`DrafterInfo.draft_times_us` up to `max_blocks`, or what a budget of time and the free context blocks allow.

    Opens sequences of its own and releases them.
    """
    num_sequences = runner.free_blocks // -(-_CONTEXT_TOKENS // runner.kv_block_size)
    return climb(doubling(min(max_blocks, num_sequences)), partial(_time_drafts_of, runner), _BUDGET_S)


def _time_drafts_of(runner: DrafterRunner, num_blocks: int) -> list[float]:
    """Seconds of `REPETITIONS` drafts of so many blocks."""
    shape = (_CONTEXT_TOKENS, runner.info.hidden_size)
    features = RawTensor("float32", shape, np.zeros(shape, np.float32).data.cast("B"))
    keys = [SequenceKey(f"self-timing-{index}", 0) for index in range(num_blocks)]
    for key in keys:
        runner.open(key, 0)
    runner.append_context([ContextChunk(key, 0, features) for key in keys])
    blocks = [DraftBlock(key, 0, _CONTEXT_TOKENS, SamplingParams()) for key in keys]
    seconds: list[float] = []
    for _ in range(REPETITIONS):
        begin = perf_counter()
        drafts = runner.draft(blocks)
        seconds.append(perf_counter() - begin)
        assert all(len(draft.token_ids) for draft in drafts), next(x for x in drafts if not len(x.token_ids))
    for key in keys:
        runner.release(key)
    return seconds
