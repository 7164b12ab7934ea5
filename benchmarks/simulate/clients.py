"""The clients of simulated routers: they check every token and time it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from benchmarks.simulate.meter import Meter
from benchmarks.simulate.playback import Playback, Script
from cluster.requests import GenerationRequest, TokenEvent
from cluster.router import Router


@dataclass(slots=True)
class Output:
    """One request as its client sees it. Times in virtual seconds."""

    stream: int
    script: Script
    submitted_at: float
    num_tokens: int = 0
    last_at: float = 0.0
    counted_from: float | None = None  # first arrival within the window
    counted_tokens: int = 0  # that came after it


@dataclass(slots=True)
class Window:
    """What clients see from `begin` on. Before that nothing is written down."""

    begin: float = float("inf")
    num_tokens: int = 0
    by_stream: dict[int, int] = field(default_factory=dict)  # tokens
    first_token_s: list[float] = field(default_factory=list)  # since submission, of first tokens within the window
    token_s: list[float] = field(default_factory=list)  # of each request with more than one arrival: mean per token
    ended_rates: list[float] = field(default_factory=list)  # tokens per second since submission, of each request's end
    refused: int = 0

    def close(self, output: Output) -> None:
        """Takes an output into account that ends, or is cut off by the window's end."""
        if output.counted_from is not None and output.counted_tokens > 0:
            self.token_s.append((output.last_at - output.counted_from) / output.counted_tokens)


class Client:
    """All clients of one router: its `EventSink`."""

    def __init__(
        self, router: Router, playback: Playback, meter: Meter, window: Window, ended: Callable[[int], None]
    ) -> None:
        """`ended` is called with the stream of every output that is complete, outside of the router's own work."""
        self._router = router
        self._playback = playback
        self._meter = meter
        self._window = window
        self._ended = ended
        self._outputs: dict[str, Output] = {}
        self.num_started = 0  # outputs with a first token

    @property
    def num_active(self) -> int:
        return len(self._outputs)

    def submit(self, request: GenerationRequest, stream: int) -> None:
        """Raises `Overloaded`."""
        submitted_at = asyncio.get_running_loop().time()
        self._router.submit(request, self)
        self._outputs[request.sequence_id] = Output(stream, Script.of_seed(request.sampling.seed), submitted_at)

    def put(self, events: list[TokenEvent]) -> None:
        with self._meter.outside():
            now = asyncio.get_running_loop().time()
            for event in events:
                if event.error is not None:
                    raise event.error
                self._take(event, now)

    def close(self) -> None:
        """At the window's end, for outputs that are not complete."""
        for output in self._outputs.values():
            self._window.close(output)

    def _take(self, event: TokenEvent, now: float) -> None:
        output, window = self._outputs[event.sequence_id], self._window
        num_tokens = len(event.token_ids)
        position = output.script.num_prompt_tokens + output.num_tokens
        expected = self._playback.tokens_at(self._playback.place(output.script, position), num_tokens)
        if not np.array_equal(event.token_ids, expected):
            raise AssertionError(f"{event.sequence_id} at {position}: {event.token_ids}, and not {expected}")
        is_first = output.num_tokens == 0
        output.num_tokens += num_tokens
        output.last_at = now
        self.num_started += is_first
        if now >= window.begin:
            window.num_tokens += num_tokens
            window.by_stream[output.stream] = window.by_stream.get(output.stream, 0) + num_tokens
            if is_first:
                window.first_token_s.append(now - output.submitted_at)
            if output.counted_from is None:
                output.counted_from = now
            else:
                output.counted_tokens += num_tokens
        if event.is_last:
            del self._outputs[event.sequence_id]
            window.close(output)
            if now >= window.begin:
                window.ended_rates.append(output.num_tokens / (now - output.submitted_at))
            asyncio.get_running_loop().call_soon(self._ended, output.stream)
