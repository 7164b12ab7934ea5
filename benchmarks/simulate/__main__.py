"""`python -m benchmarks.simulate --json found.json --plot found.png`; `--quick` for seconds instead of minutes.

The cluster's own router, between targets and drafters that take as long as tables say and write what recorded traces
say, on an event loop whose time is virtual. One group of scenarios after another, or the one that the flags describe.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from enum import StrEnum
from typing import Annotated

import typer
from rich.progress import Progress

from benchmarks.command import Deadline, JsonPath, PlotPath, Record, TimeLimit, console, run
from benchmarks.simulate.finding import Finding
from benchmarks.simulate.groups import GROUPS, H200, Group, quick_groups
from benchmarks.simulate.hardware import HARDWARE
from benchmarks.simulate.playback import EMBEDDED_TRACES, Playback
from benchmarks.simulate.policies import POLICIES
from benchmarks.simulate.report import plot, tables
from benchmarks.simulate.run import simulate
from benchmarks.simulate.scenario import LONG, SHORT, Scenario
from benchmarks.simulate.workload import ClosedLoop, OpenLoop
from dflash_core.errors import InvalidRequest

GroupName = StrEnum("GroupName", {name: name for name in GROUPS})  # type: ignore[misc]
PolicyName = StrEnum("PolicyName", {name: name for name in POLICIES})  # type: ignore[misc]
HardwareName = StrEnum("HardwareName", {name: name for name in HARDWARE})  # type: ignore[misc]
_H200 = HardwareName(H200)


def main(
    group: Annotated[list[GroupName] | None, typer.Option(help="May be repeated; default: all.")] = None,
    policy: Annotated[list[PolicyName] | None, typer.Option(help="May be repeated; default: the group's.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few small scenarios.")] = False,
    streams: Annotated[int | None, typer.Option(min=1, help="One scenario instead: this many at a time.")] = None,
    requests_per_s: Annotated[
        float | None, typer.Option(min=0.001, help="One scenario instead: clients that come and go.")
    ] = None,
    burst: Annotated[int, typer.Option(min=1, help="Of the one scenario: requests that come at once.")] = 1,
    hardware: Annotated[HardwareName, typer.Option(help="Of the one scenario.")] = _H200,
    targets: Annotated[int, typer.Option(min=1, help="Of the one scenario.")] = 1,
    targets_per_router: Annotated[int, typer.Option(min=1, help="Of the one scenario.")] = 4,
    router_us: Annotated[
        float, typer.Option(min=0.0, help="Of the one scenario: the router's work per sequence and round.")
    ] = 15.0,
    round_noise: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Of the one scenario: by which log(time) of rounds spreads."),
    ] = 0.0,
    temperature: Annotated[
        float | None, typer.Option(help="Of the one scenario's outputs; default: all that were recorded.")
    ] = None,
    long_share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Of the one scenario's requests.")] = 0.0,
    seconds: Annotated[float, typer.Option(min=0.01, help="Of the one scenario, measured, in virtual time.")] = 2.0,
    seed: Annotated[int, typer.Option(min=0, help="Of requests and arrivals.")] = 0,
    time_limit_s: TimeLimit = None,
    json_path: JsonPath = None,
    plot_path: PlotPath = None,
) -> None:
    """Throughput, latency, fairness and the router's own cost, under growing load and under different policies."""
    if streams is not None or requests_per_s is not None:
        if streams is not None and requests_per_s is not None:
            raise InvalidRequest("give either --streams or --requests-per-s")
        kinds = tuple(
            replace(kind, weight=weight) for kind, weight in ((SHORT, 1 - long_share), (LONG, long_share)) if weight
        )
        scenario = Scenario(
            group="one",
            name=f"{streams} streams" if streams is not None else f"{requests_per_s:g}/s",
            hardware=hardware.value,
            num_targets=targets,
            arrivals=ClosedLoop(streams) if streams is not None else OpenLoop(requests_per_s or 0.0, burst),
            kinds=kinds,
            targets_per_router=targets_per_router,
            router_s_per_sequence=router_us / 1e6,
            round_noise=round_noise,
            temperature=temperature,
            warm_s=min(1.0, seconds),
            measured_s=seconds,
        )
        groups = [Group("one", f"{targets} targets", (scenario,), tuple(POLICIES))]
    else:
        groups = quick_groups() if quick else [GROUPS[name]() for name in group or GROUPS]
    if policy:
        groups = [replace(one, policies=tuple(name.value for name in policy)) for one in groups]
    _run(groups, seed, Record(json_path, plot_path, _settings(groups, seed)), Deadline(time_limit_s))


def _settings(groups: list[Group], seed: int) -> dict[str, object]:
    policies = dict.fromkeys(name for group in groups for name in group.policies)
    names = dict.fromkeys(scenario.hardware for group in groups for scenario in group.scenarios)
    return {
        "traces": EMBEDDED_TRACES.name,
        "seed": seed,
        "titles": {group.name: group.title for group in groups},
        "policies": {name: asdict(POLICIES[name]) | {"strategy": POLICIES[name].strategy.value} for name in policies},
        "hardware": {name: asdict(HARDWARE[name]()) for name in names},
        "scenarios": [asdict(scenario) for group in groups for scenario in group.scenarios],
    }


def _run(groups: list[Group], seed: int, record: Record, deadline: Deadline) -> None:
    playback = Playback.load()
    for scenario in [scenario for group in groups for scenario in group.scenarios]:
        playback.traces_at(scenario.temperature)  # a wrong one is told before anything is run
    titles = {group.name: group.title for group in groups}
    work = [(group, scenario, name) for group in groups for scenario in group.scenarios for name in group.policies]
    findings: list[Finding] = []
    for name in dict.fromkeys(name for _, _, name in work):  # compiles what a policy needs: no router waits for it
        simulate(Scenario("", "", H200, 1, ClosedLoop(2), measured_s=0.05), name, POLICIES[name], playback)
    with Progress(transient=True) as progress:
        task = progress.add_task("simulations", total=len(work))
        for _, scenario, name in work:
            if deadline.is_over:
                break
            found = simulate(replace(scenario, seed=seed), name, POLICIES[name], playback)
            findings.append(found)
            record.add(asdict(found))
            progress.advance(task)
    for table in tables(findings, titles):
        console().print(table)
    if record.plot_path is not None:
        plot(findings, titles, record.plot_path)


if __name__ == "__main__":
    run(main)
