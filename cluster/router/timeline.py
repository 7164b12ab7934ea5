"""A timeline of rounds: what router, targets and drafters did when, for chrome://tracing and Perfetto.

router     │ plan │                 │ commit │ plan │
target 1   │        verify          │
           │    │ forward │ commit  │                   stages that the target reported
drafter 1  │ draft │
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

ROUTER = "router"


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took from `begin_s` to `end_s`, seconds of the event loop's clock, and what it was made of.

    Stages are parts of it whose durations alone are known: they are drawn one after the other, up to its end.
    """

    name: str
    begin_s: float
    end_s: float
    numbers: Mapping[str, float] = field(default_factory=dict)
    stage_times_us: Mapping[str, int] = field(default_factory=dict)


class Timeline:
    """Spans by actor: the router itself, and each target and drafter by the order in which it first appears."""

    def __init__(self) -> None:
        self._spans: dict[tuple[str, object], list[Span]] = {}

    def add(self, kind: str, actor: object, span: Span) -> None:
        """`kind` is what the actor is called, with a number where there are several."""
        self._spans.setdefault((kind, actor), []).append(span)

    def as_chrome_trace(self) -> dict[str, Any]:
        """The Trace Event Format: a process per actor, times in microseconds since the first span.

        Spans of one thread of it nest or do not overlap: an actor with several requests in flight has several.
        """
        spans = [span for mine in self._spans.values() for span in mine]
        origin = min((span.begin_s for span in spans), default=0.0)
        kinds = [kind for kind, _ in self._spans]
        events: list[dict[str, Any]] = []
        for pid, ((kind, _), mine) in enumerate(self._spans.items(), start=1):
            name = kind if kinds.count(kind) == 1 else f"{kind} {kinds[:pid].count(kind)}"
            events.append({"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}})
            events.append({"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}})
            for tid, row in enumerate(_rows(mine)):
                for span in row:
                    events += _events(span, origin, pid, tid)
        return {"traceEvents": events, "displayTimeUnit": "ms"}


def _rows(spans: Iterable[Span]) -> list[list[Span]]:
    """Each span in the first row where it begins after the last one has ended."""
    rows: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: (span.begin_s, span.end_s)):
        free = next((row for row in rows if row[-1].end_s <= span.begin_s), None)
        if free is None:
            rows.append([span])
        else:
            free.append(span)
    return rows


def _events(span: Span, origin_s: float, pid: int, tid: int) -> list[dict[str, Any]]:
    begin_us, end_us = (round((time_s - origin_s) * 1e6, 3) for time_s in (span.begin_s, span.end_s))

    def event(name: str, first_us: float, last_us: float, args: Mapping[str, float]) -> dict[str, Any]:
        duration_us = round(last_us - first_us, 3)
        return {"ph": "X", "name": name, "pid": pid, "tid": tid, "ts": first_us, "dur": duration_us, "args": dict(args)}

    events = [event(span.name, begin_us, end_us, span.numbers)]
    # Stages that ran beside one another take more together than the whole: the first ones are cut, never the whole.
    stage_begin_us = end_us - sum(span.stage_times_us.values())
    for name, duration_us in span.stage_times_us.items():
        stage_end_us = stage_begin_us + duration_us
        drawn = (max(stage_begin_us, begin_us), max(stage_end_us, begin_us))
        events.append(event(name, round(drawn[0], 3), round(drawn[1], 3), {"measured_us": duration_us}))
        stage_begin_us = stage_end_us
    return events
