"""Between target and drafter: context features."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from dflash_core.contracts.common import RawTensor, SequenceKey


@dataclass(frozen=True, slots=True)
class ContextChunk:
    """Projected context features of consecutive committed positions."""

    key: SequenceKey
    start: int
    features: RawTensor  # [num_tokens, hidden_size]


class ContextStatus(Enum):
    OK = "ok"
    UNKNOWN = "unknown"  # the sequence was not opened: nothing was stored
    GAP = "gap"  # start lies beyond what is there: nothing was stored
    STALE_ATTEMPT = "stale_attempt"


@dataclass(frozen=True, slots=True)
class ContextAck:
    key: SequenceKey
    status: ContextStatus
    context_len: int  # features held after this chunk


class ContextSink(Protocol):
    """Where a target sends context features. Never blocks: what does not fit the queue is dropped, and the drafter's
    `missing_from` brings it back."""

    def send(self, drafter_address: str, chunks: list[ContextChunk]) -> None: ...
