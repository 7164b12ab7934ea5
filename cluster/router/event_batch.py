"""`EventBatch`: what one round hands out, one list of events per client."""

from __future__ import annotations

import numpy as np

from cluster.requests import EventSink, FinishReason, GenerationStatistics, TokenEvent
from cluster.router.sequence import Sequence


class EventBatch:
    """Collects them while a round is committed."""

    def __init__(self) -> None:
        self._token_ids: list[int] = []  # of all events: to make one array takes a fraction of what many take
        self._rows: list[tuple[EventSink, str, int, FinishReason | None, GenerationStatistics | None, int, int]] = []

    @property
    def num_tokens(self) -> int:
        return len(self._token_ids)

    def add(
        self,
        sequence: Sequence,
        token_ids: list[int],
        finish: FinishReason | None,
        statistics: GenerationStatistics | None,
        num_nodes: int,
        cached_tokens: int,
    ) -> None:
        self._token_ids += token_ids
        sequence_id = sequence.request.sequence_id
        self._rows.append((sequence.sink, sequence_id, len(token_ids), finish, statistics, num_nodes, cached_tokens))

    def send(self) -> None:
        flat, end = np.array(self._token_ids, np.int32), 0
        of_clients: dict[EventSink, list[TokenEvent]] = {}
        for sink, sequence_id, count, finish, statistics, num_nodes, cached_tokens in self._rows:
            begin, end = end, end + count
            event = TokenEvent(sequence_id, flat[begin:end], finish, statistics, None, num_nodes, cached_tokens)
            of_clients.setdefault(sink, []).append(event)
        for sink, events in of_clients.items():
            sink.put(events)
