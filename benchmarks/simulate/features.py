"""Context features on their way from simulated targets to simulated drafters: lengths only, no numbers."""

from __future__ import annotations

import asyncio
from typing import NamedTuple, Protocol

from benchmarks.simulate.times import Network
from dflash_core.contracts import SequenceKey


class Span(NamedTuple):
    """Features of the committed positions `start` … `end − 1`."""

    key: SequenceKey
    start: int
    end: int


class FeatureReceiver(Protocol):
    def append_context(self, spans: list[Span]) -> None: ...


class FeatureSender:
    """Of one target. Spans go one after another through one pipe, as fast as the network lets them."""

    def __init__(self, network: Network, receivers: dict[str, FeatureReceiver]) -> None:
        self._network = network
        self._receivers = receivers  # by drafter address
        self._free_at = 0.0

    def send(self, address: str, spans: list[Span]) -> None:
        loop = asyncio.get_running_loop()
        num_tokens = sum(span.end - span.start for span in spans)
        self._free_at = max(self._free_at, loop.time()) + self._network.features_s(num_tokens)
        loop.call_at(self._free_at + self._network.latency_s, self._receivers[address].append_context, spans)
