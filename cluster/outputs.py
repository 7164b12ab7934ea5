"""What the offline engine takes and gives: options, pieces of text as they come, whole results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

from cluster.requests import FinishReason, GenerationStatistics, LatencyClass, Strategy, TokenEvent
from cluster.text import StreamDecoder
from dflash_core.errors import InvalidSettings


class DecodingOptions(TypedDict, total=False):
    """How to decode; all optional. Without a temperature decoding is greedy."""

    temperature: float  # 0: greedy
    top_k: int  # 0: off
    top_p: float  # 1: off
    min_p: float  # 0: off
    seed: int  # unsigned 64-bit; drawn when absent
    stop: Sequence[str]  # strings that end the output and are not part of it
    tree_budget: int  # draft tree nodes per round; 0: plain decoding; absent: the engine's
    timeout_ms: int  # 0: none
    priority: int  # of the requests that wait, a lower number goes first; 0 when absent
    latency_class: (
        str | LatencyClass
    )  # "interactive", "standard" (when absent) or "batch": of one priority, in this order
    ignore_eos: bool  # write on after an end-of-text token, up to max_length


@dataclass(frozen=True, slots=True)
class Options:
    """`DecodingOptions` with their defaults; an unknown name is a TypeError."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop: Sequence[str] = ()
    tree_budget: int | None = None
    timeout_ms: int = 0
    priority: int = 0
    latency_class: str | LatencyClass = LatencyClass.STANDARD
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """One output. `token_ids` are new tokens only, a final stop token included; `text` is theirs without it."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    statistics: GenerationStatistics


@dataclass(frozen=True, slots=True)
class Piece:
    """What one output gained in a round."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    statistics: GenerationStatistics | None = None


class Output:
    """One output while it is written. `cancel` ends it on the router and says what it cost so far."""

    def __init__(self, index: int, decoder: StreamDecoder, cancel: Callable[[], GenerationStatistics | None]) -> None:
        self._index = index
        self._decoder = decoder
        self._cancel = cancel
        self.is_done = False

    def take(self, event: TokenEvent) -> Piece:
        """Raises the event's error, if it has one."""
        if event.error is not None:
            raise event.error
        token_ids = event.token_ids.tolist()
        text, hit_stop = self._decoder.push(token_ids, is_last=event.finish_reason is not None)
        finish, statistics = event.finish_reason, event.statistics
        if hit_stop:
            finish = FinishReason.STOP
            # The router knows nothing of stop strings: what it wrote beyond this one is not handed out.
            statistics = self._cancel() or statistics
        self.is_done = finish is not None
        return Piece(self._index, text, token_ids, finish, statistics)


def as_strategy(name: str | Strategy) -> Strategy:
    """Raises `InvalidSettings` for a name that there is not."""
    try:
        return Strategy(name)
    except ValueError:
        known = ", ".join(repr(strategy.value) for strategy in Strategy)
        raise InvalidSettings(
            f"speculative_decoding_strategy must be one of {known}, got {name!r}", param="speculative_decoding_strategy"
        ) from None
