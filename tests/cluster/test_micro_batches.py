"""Two rounds in flight, drafters that are slow, and what is learned over restarts: same tokens, on a virtual clock."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest

from benchmarks.simulate.clock import run_virtually
from cluster.requests import Strategy
from cluster.router import drafting
from cluster.router.export import learned as known
from cluster.router.speculation import Speculation
from cluster.router.splitting import SplitChooser
from cluster.router.tree_planner import TreePlanner
from dflash_core.contracts import RoundRequest, RoundResult
from dflash_core.trees.build import NodeBudget
from tests.cluster.simulated_text import make_request
from tests.cluster.world import World, make_world
from tests.waiting import until


async def _decode(world: World, num_requests: int) -> None:
    requests = [make_request(world.rng, f"s{i}") for i in range(num_requests)]
    for request in requests:
        world.router.submit(request, world.client)
    await world.check_same_tokens(requests)
    await world.check_nothing_left()


@pytest.mark.parametrize("seed", range(4))
def test_two_rounds_in_flight_where_halves_promise_more(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Speculation, "advantage_of_halves", lambda *_: 2.0)

    async def main() -> None:
        async with make_world(seed, draft_timeout_ms=10_000) as world:
            target = world.add_target(row_s=0.001, num_blocks=400)
            world.add_drafter(delay_s=0.02)
            await _decode(world, 60)
            assert target.most_in_flight == 2

    run_virtually(main())


def test_one_round_in_flight_where_no_more_is_allowed() -> None:
    async def main() -> None:
        async with make_world(0, tree_budget=None, micro_batches=1) as world:
            target = world.add_target(delay_s=0.01)
            world.add_drafter(delay_s=0.01)
            await _decode(world, 20)
            assert target.most_in_flight == 1

    run_virtually(main())


def test_a_round_without_drafts_is_learned_from_while_the_target_is_at_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with make_world(0, strategy=Strategy.NONE, micro_batches=1) as world:
            target = world.add_target(delay_s=0.01)
            seen: list[tuple[int, int]] = []
            run_round = target.run_round

            def num_learned() -> int:
                found: int = world.router.rounds[0].speculation.times.verify.as_dict()["num_observed"]
                return found

            async def watched(request: RoundRequest) -> RoundResult:
                at_first = num_learned()
                result = await run_round(request)
                seen.append((at_first, num_learned()))
                return result

            monkeypatch.setattr(target, "run_round", watched)
            request = make_request(world.rng, "s", max_tokens=12)
            world.router.submit(request, world.client)
            await world.check_same_tokens([request])
            await until(lambda: num_learned() == len(seen))
            assert seen == [(0, 0), *((place, place + 1) for place in range(len(seen) - 1))]

    run_virtually(main())


@pytest.mark.parametrize("seed", range(12))
def test_same_tokens_whatever_is_chosen(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random budgets, drafts, splits, waits and pauses in feeding, with late, lost and reordered features, and pools
    that are too small."""
    rng = random.Random(seed)

    def any_budget(self: Speculation, *arguments: object) -> NodeBudget:
        return NodeBudget.of(rng.choice([0, 1, 5, 20]))

    monkeypatch.setattr(Speculation, "node_budget", any_budget)
    monkeypatch.setattr(Speculation, "is_worth_waiting", lambda *_: rng.random() < 0.5)
    monkeypatch.setattr(
        Speculation,
        "choose_drafted",
        lambda self, ready, num_sequences: [sequence for sequence in ready if rng.random() < 0.8],
    )
    monkeypatch.setattr(drafting, "MOST_UNASKED_ROUNDS", rng.choice([1, 2, 8]))
    monkeypatch.setattr(SplitChooser, "choose", lambda *_: rng.choice([1, 2]))

    async def main() -> None:
        async with make_world(seed, drop=0.1, delay_s=0.02, max_retries=1000) as world:
            for _ in range(2):
                world.add_target(delay_s=0.01, num_blocks=rng.randint(16, 48), forget=0.01)
                world.add_drafter(delay_s=0.02, straggle=0.02, skill=rng.random())
            await _decode(world, 40)

    run_virtually(main())


def test_a_slow_drafter_delays_its_own_sequences_and_loses_them() -> None:
    async def main() -> None:
        async with make_world(3, draft_timeout_ms=500) as world:
            world.add_target(delay_s=0.01, num_blocks=400)
            quick = world.add_drafter(delay_s=0.002)
            slow = world.add_drafter(delay_s=0.002)
            # From the start half of the sequences are its own. Its first answers teach what may be expected of it.
            asyncio.get_running_loop().call_later(0.1, setattr, slow, "delay_s", 60.0)
            begin = asyncio.get_running_loop().time()
            await _decode(world, 40)
            seconds = asyncio.get_running_loop().time() - begin
            assert seconds < 30.0, "somebody waited for the slow one's answers"
            links = {link.drafter: link for link in world.router._drafters.values()}
            assert links[slow].is_slow
            assert quick.num_drafts > slow.num_drafts

    run_virtually(main())


def test_scores_are_learned_and_tokens_expected_come() -> None:
    """The simulated drafter's scores say 0.6 for its first candidate where 0.9 are right."""

    async def main() -> None:
        async with make_world(5, tree_budget=8, micro_batches=1) as world:
            world.add_target(num_blocks=400, max_rows=400, max_tree_rows=300, delay_s=0.01)
            world.add_drafter(skill=0.9, delay_s=0.001)
            await _decode(world, 200)
            world.router.timings.reset()
            for i in range(100):
                world.router.submit(make_request(world.rng, f"t{i}"), world.client)
            await world.client.wait(*(f"t{i}" for i in range(100)))
            timings = world.router.timings
            assert timings.expected_tokens == pytest.approx(timings.drafted_tokens, rel=0.1)
            learned = json.loads(json.dumps(known(world.router)))
            assert learned["expected_over_actual_tokens"] == pytest.approx(1.0, abs=0.1)
            assert learned["targets"][0]["verify_times"]["num_observed"] > 50
            assert learned["drafters"][0]["times"]["num_observed"] > 50

    run_virtually(main())


async def test_what_was_learned_is_kept_per_pair(tmp_path: Path) -> None:
    async with make_world(0, learned_folder=tmp_path / "learned") as world:
        world.add_target()
        world.add_drafter(skill=0.9)
        await _decode(world, 20)
        learned = world.router._planner.as_dict()
    (path,) = (tmp_path / "learned").iterdir()
    assert json.loads(path.read_text()) == learned
    assert learned != TreePlanner(world.router.settings).as_dict()
    async with make_world(1, learned_folder=tmp_path / "learned") as world:
        world.add_target()
        assert world.router._planner.as_dict() == learned


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"acceptance": {"form": 99}}', '{"acceptance": 1}'])
async def test_a_file_that_cannot_be_used_is_begun_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / "weights-fc.json").write_text(content)
    async with make_world(0, learned_folder=tmp_path) as world:
        world.add_target()
        world.add_drafter()
        await _decode(world, 5)
    assert "acceptance" in json.loads((tmp_path / "weights-fc.json").read_text())
