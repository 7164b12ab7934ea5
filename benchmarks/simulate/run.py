"""One simulation: warm up, measure, count."""

from __future__ import annotations

import asyncio
import time

from benchmarks.simulate.clock import run_virtually
from benchmarks.simulate.cluster import SimulatedCluster
from benchmarks.simulate.finding import Fairness, Finding, RouterWork, Spread
from benchmarks.simulate.meter import Meter
from benchmarks.simulate.playback import Playback
from benchmarks.simulate.scenario import Scenario
from benchmarks.simulate.target import TargetCounts
from benchmarks.simulate.workload import OpenLoop
from cluster.router import RouterSettings

_LOOK_S = 0.01  # between two looks at whether all have started, in virtual time


def simulate(scenario: Scenario, policy: str, settings: RouterSettings, playback: Playback) -> Finding:
    """Runs the scenario on a virtual clock from its beginning to the end of what is measured."""
    return run_virtually(_simulate(scenario, policy, settings, playback))


async def _simulate(scenario: Scenario, policy: str, settings: RouterSettings, playback: Playback) -> Finding:
    wall_begin = time.perf_counter()
    meter = Meter()
    cluster = SimulatedCluster(scenario, settings, playback, meter)
    arriving = await _warm_up(cluster)
    _begin(cluster, meter)
    await asyncio.sleep(scenario.measured_s)
    router_s = meter.router_s
    if arriving is not None:
        arriving.cancel()
    await cluster.close()
    return _finding(cluster, policy, router_s, time.perf_counter() - wall_begin)


async def _warm_up(cluster: SimulatedCluster) -> asyncio.Task[None] | None:
    """Returns the task that goes on submitting, where clients come and go."""
    scenario = cluster.scenario
    arrivals = scenario.arrivals
    if isinstance(arrivals, OpenLoop):
        arriving = asyncio.create_task(_arrive(cluster, arrivals))
        await asyncio.sleep(scenario.warm_s)
        return arriving
    cluster.start_streams(arrivals)
    while cluster.num_started < arrivals.num_streams:
        await asyncio.sleep(_LOOK_S)
    await asyncio.sleep(scenario.warm_s)
    return None


async def _arrive(cluster: SimulatedCluster, arrivals: OpenLoop) -> None:
    while True:
        await asyncio.sleep(cluster.next_gap_s(arrivals))
        cluster.submit_burst(arrivals)


def _begin(cluster: SimulatedCluster, meter: Meter) -> None:
    """From here on everything is counted."""
    cluster.window.begin = asyncio.get_running_loop().time()
    cluster.window.refused = 0
    for router in cluster.routers:
        router.timings.reset()
    for target in cluster.targets:
        target.counts = TargetCounts()
    for drafter in cluster.drafters:
        drafter.busy_s = 0.0
    meter.reset()


def _finding(cluster: SimulatedCluster, policy: str, router_s: float, wall_s: float) -> Finding:
    scenario, window = cluster.scenario, cluster.window
    counts = [target.counts for target in cluster.targets]
    rounds, trees = sum(count.rounds for count in counts), sum(count.trees for count in counts)
    num_streams = scenario.num_streams
    if num_streams is not None:
        rates = [window.by_stream.get(stream, 0) / scenario.measured_s for stream in range(num_streams)]
    else:
        rates = window.ended_rates
    return Finding(
        group=scenario.group,
        scenario=scenario.name,
        policy=policy,
        num_streams=num_streams,
        tokens_per_s=window.num_tokens / scenario.measured_s,
        first_token=Spread.of_seconds(window.first_token_s),
        per_token=Spread.of_seconds(window.token_s),
        fairness=Fairness.of_rates(rates),
        acceptance_length=1 + sum(count.accepted for count in counts) / trees if trees else None,
        nodes_per_sequence=sum(count.nodes for count in counts) / trees if trees else None,
        sequences_per_round=trees / rounds if rounds else None,
        target_busy=sum(count.busy_s for count in counts) / (len(counts) * scenario.measured_s),
        drafter_busy=_mean([drafter.busy_s for drafter in cluster.drafters]) / scenario.measured_s,
        rounds=rounds,
        preempted=sum(router.timings.preemptions for router in cluster.routers),
        refused=window.refused,
        requests_ended=len(window.ended_rates),
        router=RouterWork(
            us_per_round=router_s * 1e6 / max(rounds, 1),
            us_per_sequence_round=router_s * 1e6 / max(trees, 1),
            busy=router_s / (len(cluster.routers) * scenario.measured_s),
        ),
        simulated_s=scenario.measured_s,
        wall_s=wall_s,
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
