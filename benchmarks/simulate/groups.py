"""The simulations that belong together: one curve each, and the policies compared on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from benchmarks.simulate.policies import ADAPTIVE, PLAIN, POLICIES
from benchmarks.simulate.scenario import LONG, SHORT, Scenario
from benchmarks.simulate.workload import ClosedLoop, OpenLoop

CPU, H200 = "embedded-cpu", "qwen3-8b-h200"
_STREAMS_PER_TARGET = 156.25  # 10,000 on 64 targets
_EVERY = tuple(POLICIES)
_FEW = (PLAIN, "tree 16", ADAPTIVE)


@dataclass(frozen=True, slots=True)
class Group:
    name: str
    title: str
    scenarios: tuple[Scenario, ...]
    policies: tuple[str, ...]


def _load(name: str, title: str, kind: str, streams: tuple[int, ...], measured_s: float) -> Group:
    scenarios = tuple(Scenario(name, str(n), kind, 1, ClosedLoop(n), measured_s=measured_s) for n in streams)
    return Group(name, title, scenarios, _EVERY)


def _scale(
    name: str, title: str, targets_per_router: int, policies: tuple[str, ...], targets: tuple[int, ...] = (1, 4, 16, 64)
) -> Group:
    scenarios = tuple(
        Scenario(
            name,
            f"{n} × {n * _STREAMS_PER_TARGET:.0f}",
            H200,
            n,
            ClosedLoop(round(n * _STREAMS_PER_TARGET)),
            targets_per_router=targets_per_router,
            warm_s=0.05,
            measured_s=0.2,
        )
        for n in targets
    )
    return Group(name, title, scenarios, policies)


def _arrivals() -> Group:
    scenarios = tuple(
        Scenario(
            "arrivals",
            f"{rate}/s{f' by {burst}' if burst > 1 else ''}",
            H200,
            4,
            OpenLoop(rate, burst),
            warm_s=1.0,
            measured_s=2.0,
        )
        for burst in (1, 32)
        for rate in (40, 160, 280)
    )
    return Group(
        "arrivals", "requests that come by themselves, one by one or by 32, to 4 targets", scenarios, (*_FEW, "chain")
    )


def _long() -> Group:
    base = Scenario("long", "", H200, 1, ClosedLoop(1), kinds=(LONG,), warm_s=0.5, measured_s=1.5)
    alone = tuple(replace(base, name=f"long {n}", arrivals=ClosedLoop(n)) for n in (1, 8, 32))
    mixed = replace(base, name="mixed 64", arrivals=ClosedLoop(64), kinds=(SHORT, replace(LONG, weight=0.1)))
    return Group("long", "long prompts and outputs on 1 target; one of 11 long among 64", (*alone, mixed), _EVERY)


def _stragglers() -> Group:
    base = Scenario("stragglers", "", H200, 1, ClosedLoop(32), drafters_per_target=2.0, measured_s=1.0)
    scenarios = tuple(replace(base, name=f"{share:.0%}", straggler_share=share) for share in (0.0, 0.01, 0.05, 0.2))
    return Group(
        "stragglers", "drafts that take ten times as long, by their share; 32 streams, 2 drafters", scenarios, _FEW
    )


GROUPS: Final[dict[str, Callable[[], Group]]] = {
    "load": lambda: _load("load", "streams on 1 target", H200, (1, 4, 16, 64, 256), 1.0),
    "load-cpu": lambda: _load(
        "load-cpu", "streams on 1 target, the embedded pair on CPUs", CPU, (1, 4, 8, 16, 32), 8.0
    ),
    "arrivals": _arrivals,
    "long": _long,
    "stragglers": _stragglers,
    "one-router": lambda: _scale(
        "one-router", "targets × streams, one router for all", 64, (PLAIN, ADAPTIVE), (1, 2, 4, 8, 16)
    ),
    "scale": lambda: _scale("scale", "targets × streams, a router for four targets", 4, (PLAIN, ADAPTIVE)),
}


def quick_groups() -> list[Group]:
    """A few small ones, in seconds."""
    load = _load("load", "streams on 1 target", H200, (1, 16), 0.3)
    scale = _scale("scale", "targets × streams, a router for four targets", 4, (PLAIN, ADAPTIVE), targets=(2,))
    small = tuple(replace(scenario, measured_s=0.1) for scenario in scale.scenarios)
    return [replace(load, policies=_FEW), replace(scale, scenarios=small)]
