"""What the transports need of `dflash_core.runners`, without importing torch. Runners are synchronous."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from dflash_core.contracts import (
    ContextAck,
    ContextChunk,
    Draft,
    DraftBlock,
    DrafterInfo,
    DraftRequest,
    DraftResult,
    PackedDrafts,
    RoundRequest,
    RoundResult,
    SequenceKey,
    TargetInfo,
)


class RoundOutput(Protocol):
    @property
    def result(self) -> RoundResult: ...

    @property
    def context(self) -> Mapping[str, list[ContextChunk]]:
        """Features of the committed positions, by drafter address."""
        ...


class TargetModelRunner(Protocol):
    @property
    def info(self) -> TargetInfo: ...

    @property
    def free_blocks(self) -> int: ...

    @property
    def num_sequences(self) -> int: ...

    def run_round(self, request: RoundRequest) -> RoundOutput: ...

    def release_all(self) -> None: ...

    def close(self) -> None:
        """Ends what runs beside this process. Runs no round afterwards."""
        ...


class DrafterModelRunner(Protocol):
    @property
    def info(self) -> DrafterInfo: ...

    @property
    def stage_times_us(self) -> dict[str, int]:
        """Of the last `draft`."""
        ...

    def open(self, key: SequenceKey, context_len: int) -> None: ...

    def append_context(self, chunks: Sequence[ContextChunk]) -> list[ContextAck]: ...

    def context_len(self, key: SequenceKey) -> int | None: ...

    def draft(self, blocks: Sequence[DraftBlock]) -> Sequence[Draft]: ...

    def release(self, key: SequenceKey) -> None: ...

    def release_all(self) -> None: ...


def run_draft_request(runner: DrafterModelRunner, request: DraftRequest) -> DraftResult:
    """Releases, then opens, then one forward over all blocks."""
    for key in request.releases:
        runner.release(key)
    for key, context_len in request.opens:
        runner.open(key, context_len)
    if not request.blocks:
        return DraftResult(request.batch_id, ())
    return DraftResult(request.batch_id, draft_blocks(runner, request), runner.stage_times_us)


def draft_blocks(runner: DrafterModelRunner, request: DraftRequest) -> PackedDrafts:
    """One forward over all blocks; of each draft what was asked for."""
    drafts = PackedDrafts.of(runner.draft(request.blocks))
    return drafts if request.num_candidates == 0 else drafts.best(request.num_candidates)
