"""Whole simulations: every stream gets exactly what its trace says, and a run can be repeated."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.simulate.clock import run_virtually
from benchmarks.simulate.cluster import SimulatedCluster
from benchmarks.simulate.finding import Finding
from benchmarks.simulate.groups import CPU, GROUPS, H200
from benchmarks.simulate.hardware import hardware
from benchmarks.simulate.meter import Meter
from benchmarks.simulate.playback import Playback, Script
from benchmarks.simulate.policies import PLAIN, POLICIES
from benchmarks.simulate.run import simulate
from benchmarks.simulate.scenario import LONG, SHORT, Scenario
from benchmarks.simulate.workload import ClosedLoop, OpenLoop
from cluster.requests import EventSink, GenerationRequest, TokenEvent
from cluster.router import RouterSettings
from dflash_core.contracts import Prefill, RoundRequest, SamplingParams, SequenceKey
from dflash_core.errors import InvalidRequest
from tests.bench.benchmark_runs import error_of, report_of

STREAMS = ClosedLoop(12)
SMALL = Scenario("test", "", CPU, 3, STREAMS, targets_per_router=2, straggler_share=0.05)


@pytest.fixture(scope="module")
def playback() -> Playback:
    return Playback.load()


class _Ledger:
    """Looks over the clients' shoulders: who was promised which tokens, and got which."""

    def __init__(self, cluster: SimulatedCluster, playback: Playback, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wanted: dict[str, list[int]] = {}
        self.got: dict[str, list[int]] = {}
        self.ends: Counter[str] = Counter()
        for client, router in zip(cluster.clients, cluster.routers, strict=True):
            submit, put = router.submit, client.put

            def noted(request: GenerationRequest, sink: EventSink, submit: Any = submit) -> None:
                script = Script.of_seed(request.sampling.seed)
                self.wanted[request.sequence_id] = playback.output(script, request.max_tokens).tolist()
                submit(request, sink)

            def taken(events: list[TokenEvent], put: Any = put) -> None:
                for event in events:
                    self.got.setdefault(event.sequence_id, []).extend(event.token_ids.tolist())
                    self.ends[event.sequence_id] += event.is_last
                put(events)

            monkeypatch.setattr(router, "submit", noted)
            monkeypatch.setattr(client, "put", taken)


def test_what_is_released_while_its_prompt_is_prefilled_is_not_held_again(playback: Playback) -> None:
    """The round that releases takes no time: it ends at the same moment as the one before, and after it."""

    async def main() -> None:
        target, _ = SimulatedCluster(SMALL, POLICIES[PLAIN], playback, Meter()).targets[:2]
        key, prompt = SequenceKey("a", 1), np.zeros(8, np.int32)
        sampling = SamplingParams(seed=Script(0, 0, len(prompt)).seed)
        # With an earlier and a later one, of two timers of one time the loop fires the second first.
        loop = asyncio.get_running_loop()
        loop.call_later(1e-6, lambda: None)
        prefill = Prefill(key, prompt, 0, True, len(prompt), sampling)
        first = loop.create_task(target.run_round(RoundRequest(1, prefills=(prefill,))))
        second = loop.create_task(target.run_round(RoundRequest(2, releases=(key,))))
        await asyncio.sleep(0.0)
        loop.call_later(60.0, lambda: None)
        await asyncio.gather(first, second)
        assert target.num_sequences == 0

    run_virtually(main())


@pytest.mark.parametrize("num_blocks", [2048, 20])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_stream_gets_exactly_what_its_trace_says(
    policy: str, num_blocks: int, playback: Playback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With plenty of blocks, and with so few that sequences are preempted; in the end nobody holds any."""
    monkeypatch.setattr("benchmarks.simulate.cluster.hardware", lambda _: replace(hardware(CPU), num_blocks=num_blocks))

    async def main() -> tuple[_Ledger, int]:
        cluster = SimulatedCluster(SMALL, POLICIES[policy], playback, Meter())
        ledger = _Ledger(cluster, playback, monkeypatch)
        cluster.start_streams(STREAMS)
        await asyncio.sleep(8.0)
        preemptions = sum(router.timings.preemptions for router in cluster.routers)
        for router, client in zip(cluster.routers, cluster.clients, strict=True):
            router.release_client(client)
        await asyncio.sleep(2.0)
        assert [target.free_blocks for target in cluster.targets] == [num_blocks] * 3
        assert not any(pool.num_sequences for pool in (*cluster.targets, *cluster.drafters))
        await cluster.close()
        return ledger, preemptions

    ledger, preemptions = run_virtually(main())
    assert sum(ledger.ends.values()) > 6
    assert (preemptions > 0) == (num_blocks == 20)
    for sequence_id, got in ledger.got.items():
        wanted = ledger.wanted[sequence_id]
        assert got == wanted[: len(got)]
        assert ledger.ends[sequence_id] == (len(got) == len(wanted))


def _repeatable(found: Finding) -> dict[str, Any]:
    """Without what the real clock says."""
    return {name: value for name, value in asdict(found).items() if name not in ("router", "wall_s")}


@pytest.mark.parametrize("arrivals", [STREAMS, OpenLoop(20.0, 4)])
def test_a_seeded_run_can_be_repeated(arrivals: ClosedLoop | OpenLoop, playback: Playback) -> None:
    scenario = replace(SMALL, arrivals=arrivals, measured_s=3.0)
    first, second, other = (
        _repeatable(simulate(replace(scenario, seed=seed), "tree 8", POLICIES["tree 8"], playback))
        for seed in (1, 1, 2)
    )
    assert first == second != other
    assert first["requests_ended"] > 0


def test_what_is_found_adds_up(playback: Playback) -> None:
    plain = simulate(replace(SMALL, straggler_share=0.0), PLAIN, POLICIES[PLAIN], playback)
    tree = simulate(replace(SMALL, straggler_share=0.0), "tree 16", POLICIES["tree 16"], playback)
    assert (plain.acceptance_length, plain.nodes_per_sequence, plain.drafter_busy) == (1.0, 0.0, 0.0)
    assert tree.acceptance_length is not None
    assert tree.acceptance_length > 1.5
    for found in (plain, tree):
        assert 0.0 < found.target_busy <= 1.01  # a round's time counts where it ends
        assert found.router.us_per_sequence_round > 0.0
        assert found.fairness.jain is not None
        assert found.fairness.jain > 0.5
        assert found.per_token.p50 is not None
        # Twelve streams, a token each every p50 ms.
        assert found.tokens_per_s == pytest.approx(12 / found.per_token.p50 * 1e3, rel=0.3)


def test_rounds_whose_times_spread(playback: Playback) -> None:
    scenario = replace(SMALL, straggler_share=0.0, measured_s=10.0)
    even, uneven = (
        simulate(replace(scenario, round_noise=noise), PLAIN, POLICIES[PLAIN], playback) for noise in (0.0, 0.3)
    )
    assert uneven.tokens_per_s == pytest.approx(even.tokens_per_s, rel=0.2)
    assert uneven.tokens_per_s != even.tokens_per_s


def test_outputs_of_one_temperature(playback: Playback) -> None:
    greedy, sampled = (
        simulate(replace(SMALL, temperature=temperature), "tree 16", POLICIES["tree 16"], playback).acceptance_length
        for temperature in (0.0, 1.0)
    )
    assert greedy is not None
    assert sampled is not None
    assert greedy > 1.3 * sampled
    with pytest.raises(InvalidRequest, match=r"one of \[0.0, 1.0\], as recorded, got 0.7"):
        simulate(replace(SMALL, temperature=0.7), PLAIN, POLICIES[PLAIN], playback)


def test_long_prompts_are_prefilled_in_chunks(playback: Playback) -> None:
    mixed = Scenario("test", "", H200, 1, ClosedLoop(6), kinds=(SHORT, replace(LONG, weight=0.5)), measured_s=1.0)
    found = simulate(mixed, "tree 8", POLICIES["tree 8"], playback)
    assert found.tokens_per_s > 0
    assert found.preempted == 0


def test_a_router_of_too_many_targets_slows_them(playback: Playback) -> None:
    scenario = Scenario("test", "", H200, 4, ClosedLoop(128), router_s_per_sequence=100e-6, measured_s=0.3)
    together, apart = (
        simulate(replace(scenario, targets_per_router=n), PLAIN, POLICIES[PLAIN], playback).tokens_per_s for n in (4, 1)
    )
    assert together < 0.7 * apart


def test_a_full_queue_refuses_and_streams_try_again(playback: Playback) -> None:
    settings = RouterSettings(max_running=2, max_waiting=3)
    found = simulate(replace(SMALL, num_targets=1, arrivals=OpenLoop(50.0, 10)), "few", settings, playback)
    assert found.refused > 0
    streams = simulate(replace(SMALL, num_targets=1, measured_s=10.0), "few", settings, playback)
    assert streams.refused > 12  # seven of twelve, once a second
    assert streams.requests_ended > 0


def test_every_group_names_policies_and_hardware_that_exist() -> None:
    for name, make in GROUPS.items():
        group = make()
        assert group.name == name
        assert set(group.policies) <= set(POLICIES)
        assert len({scenario.name for scenario in group.scenarios}) == len(group.scenarios)
        for scenario in group.scenarios:
            assert scenario.group == name
            hardware(scenario.hardware)


def test_the_command(tmp_path: Path) -> None:
    arguments = ("--streams", "4", "--seconds", "0.2", "--policy", PLAIN, "--policy", "tree 8")
    report = report_of("simulate", tmp_path, *arguments)
    assert [result["policy"] for result in report["results"]] == [PLAIN, "tree 8"]
    assert report["results"][0]["tokens_per_s"] < report["results"][1]["tokens_per_s"]
    assert report["settings"]["policies"]["tree 8"]["tree_budget"] == 8


@pytest.mark.parametrize(
    "arguments",
    [
        ("--streams", "0"),
        ("--streams", "1", "--requests-per-s", "1"),
        ("--policy", "best"),
        ("--streams", "1", "--temperature", "3"),
    ],
)
def test_a_wrong_flag_is_one_line(arguments: tuple[str, ...]) -> None:
    assert error_of("simulate", *arguments).startswith("error: ")
