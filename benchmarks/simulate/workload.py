"""What clients ask for, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.simulate.playback import Playback, Script
from cluster.requests import GenerationRequest
from dflash_core.contracts import SamplingParams


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens, drawn evenly from both ends on."""

    least: int
    most: int

    def draw(self, rng: np.random.Generator) -> int:
        return int(rng.integers(self.least, self.most + 1))


@dataclass(frozen=True, slots=True)
class RequestKind:
    weight: float
    prompt: Lengths
    output: Lengths


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """Clients that ask again as soon as they have their answer."""

    num_streams: int


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Clients that come and go: bursts of `burst_size` requests at once, at random times; 1 is a Poisson process."""

    requests_per_s: float
    burst_size: int = 1

    def next_gap_s(self, rng: np.random.Generator) -> float:
        return float(rng.exponential(self.burst_size / self.requests_per_s))


Arrivals = ClosedLoop | OpenLoop


class RequestSource:
    """Draws requests: a kind, its lengths, and a trace to follow from a random place on."""

    def __init__(
        self,
        kinds: Sequence[RequestKind],
        playback: Playback,
        rng: np.random.Generator,
        temperature: float | None = None,  # of the traces; None: any
    ) -> None:
        """Raises what `Playback.traces_at` raises."""
        self._kinds = list(kinds)
        weights = np.asarray([kind.weight for kind in kinds])
        self._shares = weights / weights.sum()
        self._playback = playback
        self._temperatures = playback.temperatures
        self._traces = playback.traces_at(temperature)
        self._rng = rng
        self._prompts = np.zeros(max(kind.prompt.most for kind in kinds), np.int32)  # nobody reads them

    def next(self, sequence_id: str, rest: float = 1.0) -> GenerationRequest:
        """`rest`: share of the output that is still to be written, for one that is met on its way."""
        rng = self._rng
        kind = self._kinds[int(rng.choice(len(self._kinds), p=self._shares))]
        num_prompt_tokens, num_output = kind.prompt.draw(rng), kind.output.draw(rng)
        trace = self._traces[int(rng.integers(len(self._traces)))]
        script = Script(trace, int(rng.integers(self._playback.length(trace))), num_prompt_tokens)
        return GenerationRequest(
            sequence_id=sequence_id,
            token_ids=self._prompts[:num_prompt_tokens],
            num_prompt_tokens=num_prompt_tokens,
            max_tokens=max(2, round(num_output * rest)),
            sampling=SamplingParams(temperature=self._temperatures[trace], seed=script.seed),
        )
