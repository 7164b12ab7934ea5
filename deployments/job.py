"""One client request in the words of neither protocol, what comes of it, and its sums."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from cluster.requests import FinishReason, LatencyClass, check_priority
from dflash_core.contracts import SamplingParams
from dflash_core.errors import InvalidRequest

DEFAULT_MAX_TOKENS = 16
MAX_STOP_STRINGS = 4


@dataclass(frozen=True, slots=True)
class GenerationJob:
    """What a client asked for, in range as far as that can be told without tokenising."""

    model: str | None  # None: the model that is served
    prompts: tuple[str | list[int], ...]
    max_tokens: int = DEFAULT_MAX_TOKENS
    num_choices: int = 1  # outputs per prompt
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=1.0))  # seed: the request's own
    stop: tuple[str, ...] = ()
    tree_budget: int | None = None
    timeout_ms: int = 0
    latency_class: LatencyClass = LatencyClass.STANDARD
    priority: int = 0  # lower goes first

    def __post_init__(self) -> None:
        if not self.prompts:
            raise InvalidRequest("prompt is empty: give at least one", param="prompt")
        if self.max_tokens < 1:
            raise InvalidRequest(f"max_tokens must be at least 1, got {self.max_tokens}", param="max_tokens")
        if self.num_choices < 1:
            raise InvalidRequest(f"n must be at least 1, got {self.num_choices}", param="n")
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequest(f"stop takes at most {MAX_STOP_STRINGS} strings, got {len(self.stop)}", param="stop")
        if "" in self.stop:
            raise InvalidRequest("stop must not hold an empty string", param="stop")
        if self.tree_budget is not None and self.tree_budget < 0:
            raise InvalidRequest(f"tree_budget must be at least 0, got {self.tree_budget}", param="tree_budget")
        if not 0 <= self.timeout_ms < 2**32:
            raise InvalidRequest(f"timeout_ms must lie in [0, {2**32 - 1}], got {self.timeout_ms}", param="timeout_ms")
        check_priority(self.priority)

    @property
    def num_outputs(self) -> int:
        return len(self.prompts) * self.num_choices


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What one output gained in a round."""

    index: int  # of the output: prompt index times num_choices plus choice index
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None


@dataclass(slots=True)
class JobStatistics:
    """Sums over the outputs of one job; times as this process saw them."""

    started_at: float = field(default_factory=time.monotonic)
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompts', those that did not have to be computed
    output_tokens: int = 0
    rounds: int = 0  # target passes that gave tokens, those that end a prefill included
    verified_trees: int = 0  # rounds without those
    tree_nodes: int = 0
    time_to_first_token_ms: float = 0.0
    decode_ms: float = 0.0  # first token to last, the sum over the outputs
    decoded_tokens: int = 0  # tokens of verified trees

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens per verified tree: accepted ones and the target's own."""
        return self.decoded_tokens / self.verified_trees if self.verified_trees else 0.0

    @property
    def time_per_output_token_ms(self) -> float:
        return self.decode_ms / self.decoded_tokens if self.decoded_tokens else 0.0
