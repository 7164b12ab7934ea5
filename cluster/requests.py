"""What a client of the router asks for and gets: the types between gateway (or offline engine) and router."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from dflash_core.contracts import SamplingParams, TokenIds
from dflash_core.errors import DFlashError, InvalidRequest

LOWEST_PRIORITY, HIGHEST_PRIORITY = 2**31 - 1, -(2**31)  # as in vLLM's API, a lower number goes first


class Strategy(Enum):
    """How drafts are made: the values users write in settings and pass to the engine."""

    DRAFT_TREES = "block_diffusion_draft_trees"  # trees of the drafter's candidates
    CHAIN = "block_diffusion"  # one path: the drafter's likeliest token at each depth
    NONE = "none"  # plain decoding, no drafter


class LatencyClass(Enum):
    """How much a request's speed counts against the others': its share of draft nodes, and its place in the queue.

    In falling order of urgency: of one priority, every waiting request of a class goes before all of the next.
    """

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"


def check_priority(priority: int) -> None:
    """Raises `InvalidRequest` outside the range that the messages can carry."""
    if not HIGHEST_PRIORITY <= priority <= LOWEST_PRIORITY:
        raise InvalidRequest(
            f"priority must lie in [{HIGHEST_PRIORITY}, {LOWEST_PRIORITY}], got {priority}", param="priority"
        )


class FinishReason(Enum):
    STOP = "stop"  # a stop token was written
    LENGTH = "length"  # max_tokens were written


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One output to generate. After a failover `token_ids` holds the prompt and the tokens received so far."""

    sequence_id: str
    token_ids: TokenIds  # [num_prompt_tokens + num_received]
    num_prompt_tokens: int
    max_tokens: int  # beyond the prompt, those received included
    sampling: SamplingParams
    stop_token_ids: tuple[int, ...] = ()
    tree_budget: int | None = None  # most nodes without the root; None: the router's setting; 0: plain decoding
    timeout_ms: int = 0  # 0: none
    latency_class: LatencyClass = LatencyClass.STANDARD
    priority: int = 0  # lower goes first, whatever the class


@dataclass(frozen=True, slots=True)
class GenerationStatistics:
    rounds: int
    tree_nodes: int  # verified, without roots
    accepted_tokens: int
    output_tokens: int
    queue_ms: float
    time_to_first_token_ms: float
    decode_ms: float  # first token to last
    cached_tokens: int  # of the prompt, those that the prefix cache had


class TokenEvent(NamedTuple):
    """New tokens of one sequence; the last event has a finish_reason with statistics, or an error."""

    sequence_id: str
    token_ids: TokenIds
    finish_reason: FinishReason | None = None
    statistics: GenerationStatistics | None = None
    error: DFlashError | None = None
    num_tree_nodes: int = 0  # verified for these tokens, without the root: a client that stops early can still count
    cached_tokens: int = 0  # with the first tokens: of the prompt, those that the prefix cache had

    @property
    def is_last(self) -> bool:
        return self.finish_reason is not None or self.error is not None


class EventSink(Protocol):
    """Where the router puts the events of one client; called once a round with all of its sequences."""

    def put(self, events: list[TokenEvent]) -> None: ...
