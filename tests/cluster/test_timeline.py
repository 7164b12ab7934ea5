"""The timeline of rounds: a valid trace whose spans nest, and whose stages add up to the sums of the timings."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.router.timeline import ROUTER, Span, Timeline
from tests.cluster.simulated_text import make_request
from tests.cluster.world import make_world

_ROUNDING_US = 0.01

Event = dict[str, Any]


def events_of(timeline: Timeline) -> list[Event]:
    trace = json.loads(json.dumps(timeline.as_chrome_trace()))
    assert trace["displayTimeUnit"] == "ms"
    return [event for event in trace["traceEvents"] if event["ph"] == "X"]


def names_of(timeline: Timeline) -> list[str]:
    events = timeline.as_chrome_trace()["traceEvents"]
    return [event["args"]["name"] for event in events if event["name"] == "process_name"]


def check_nesting(events: list[Event]) -> None:
    """Of any two spans of a thread, one lies within the other or they do not overlap."""
    threads: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for event in events:
        assert event["ts"] >= 0.0
        assert event["dur"] >= 0.0
        threads[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for spans in threads.values():
        open_ends: list[float] = []
        for begin, end in sorted(spans, key=lambda span: (span[0], -span[1])):
            while open_ends and open_ends[-1] <= begin + _ROUNDING_US:
                open_ends.pop()
            assert all(end <= outer + _ROUNDING_US for outer in open_ends)
            open_ends.append(end)


times = st.floats(0.0, 10.0).map(lambda seconds: round(seconds, 4))
stages = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 2_000_000), max_size=3)
spans = st.builds(
    lambda begin, duration, stage_times_us: Span("span", begin, begin + duration, {"rows": 3}, stage_times_us),
    times,
    times,
    stages,
)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["target", "drafter"]), st.integers(0, 2), spans), max_size=30))
def test_spans_of_a_thread_nest(added: list[tuple[str, int, Span]]) -> None:
    timeline = Timeline()
    for kind, actor, span in added:
        timeline.add(kind, actor, span)
    events = events_of(timeline)
    check_nesting(events)
    assert len(events) == sum(1 + len(span.stage_times_us) for _, _, span in added)


def test_actors_have_numbers_where_there_are_several() -> None:
    timeline = Timeline()
    for kind, actor in (("target", "a"), (ROUTER, ROUTER), ("target", "b"), ("drafter", "a"), ("target", "a")):
        timeline.add(kind, actor, Span("span", 1.0, 2.0))
    assert names_of(timeline) == ["target 1", "router", "target 2", "drafter"]


def test_stages_end_with_their_span() -> None:
    timeline = Timeline()
    timeline.add("target", "a", Span("verify", 5.0, 5.001, {"rows": 9}, {"forward": 300, "walk": 200}))
    verify, forward, walk = events_of(timeline)
    assert (verify["ts"], verify["dur"], verify["args"]) == (0.0, 1000.0, {"rows": 9})
    assert (forward["ts"], forward["dur"]) == (500.0, 300.0)
    assert (walk["ts"], walk["dur"]) == (800.0, 200.0)


def test_without_spans_it_is_an_empty_trace() -> None:
    assert Timeline().as_chrome_trace()["traceEvents"] == []


async def test_rounds_of_a_router() -> None:
    async with make_world(5, delay_s=0.001) as world:
        timeline = world.router.timings.timeline = Timeline()
        world.add_target()
        world.add_drafter()
        requests = [make_request(world.rng, f"r{i}") for i in range(6)]
        for request in requests:
            world.router.submit(request, world.client)
        await world.check_same_tokens(requests)
        timings = world.router.timings
        events = events_of(timeline)
        check_nesting(events)
        by_name: dict[str, list[Event]] = defaultdict(list)
        for event in events:
            by_name[event["name"]].append(event)
        assert len(by_name["verify"]) == timings.stages["round.verify"].count
        assert sum(event["args"]["nodes"] for event in by_name["verify"]) == timings.tree_nodes
        assert len(by_name["commit"]) == timings.rounds
        assert len(by_name["plan"]) == timings.stages["router.plan"].count
        sums = [timings.stages[f"{kind}.forward"].total_us for kind in ("target", "drafter")]
        assert sum(event["args"]["measured_us"] for event in by_name["forward"]) == sum(sums)
        assert by_name["draft"]
