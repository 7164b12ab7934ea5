"""A client of the router that checks what it gets."""

from __future__ import annotations

import asyncio

from cluster.requests import TokenEvent


class Client:
    """A sink that checks the order of events and waits for their ends."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.first: dict[str, TokenEvent] = {}
        self.last: dict[str, TokenEvent] = {}
        self._ends: dict[str, asyncio.Event] = {}
        self.num_puts = 0

    def put(self, events: list[TokenEvent]) -> None:
        self.num_puts += 1
        assert len({event.sequence_id for event in events}) == len(events), "one event per sequence and round"
        for event in events:
            assert event.sequence_id not in self.last, "no event after the last one"
            self.first.setdefault(event.sequence_id, event)
            assert event is self.first[event.sequence_id] or not event.cached_tokens, "told once"
            self.tokens.setdefault(event.sequence_id, []).extend(event.token_ids.tolist())
            if event.is_last:
                self.last[event.sequence_id] = event
                self._end(event.sequence_id).set()

    def _end(self, sequence_id: str) -> asyncio.Event:
        return self._ends.setdefault(sequence_id, asyncio.Event())

    async def wait(self, *sequence_ids: str, timeout_s: float = 60.0) -> None:
        async with asyncio.timeout(timeout_s):
            for sequence_id in sequence_ids:
                await self._end(sequence_id).wait()
