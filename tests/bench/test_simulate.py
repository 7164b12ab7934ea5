"""The parts of the simulation: its clock, its tables, and the traces that it plays back."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.simulate.clock import NothingToWaitFor, run_virtually
from benchmarks.simulate.finding import Fairness, Spread
from benchmarks.simulate.groups import CPU, H200
from benchmarks.simulate.hardware import hardware
from benchmarks.simulate.playback import Playback, Script
from benchmarks.simulate.times import RoundNoise, RoundTimes, RouterProcessor, interpolate
from benchmarks.trees import random_depths
from cluster.router import RoundTimings
from dflash_core.contracts import DraftTree, SequenceKey, TokenIds, TreeRows
from dflash_core.errors import InvalidRequest
from dflash_core.trees.structure import parents


@pytest.fixture(scope="module")
def playback() -> Playback:
    return Playback.load()


class TestClock:
    def test_timers_run_in_the_order_of_their_times_however_far_away(self) -> None:
        async def main() -> list[tuple[str, float]]:
            loop = asyncio.get_running_loop()
            seen: list[tuple[str, float]] = []

            async def sleeper(name: str, seconds: float) -> None:
                await asyncio.sleep(seconds)
                seen.append((name, loop.time()))

            await asyncio.gather(sleeper("month", 2_592_000.0), sleeper("ms", 0.001), sleeper("hour", 3_600.0))
            return seen

        assert run_virtually(main()) == [("ms", 0.001), ("hour", 3_600.0), ("month", 2_592_000.0)]

    def test_time_stands_still_while_anything_can_run(self) -> None:
        async def main() -> float:
            for _ in range(1_000):
                await asyncio.sleep(0)
            return asyncio.get_running_loop().time()

        assert run_virtually(main()) == 0.0

    def test_deadlines_are_in_virtual_time(self) -> None:
        async def main() -> float:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1_000.0):
                    await asyncio.Event().wait()
            return asyncio.get_running_loop().time()

        assert run_virtually(main()) == pytest.approx(1_000.0)

    def test_the_router_times_its_waits_by_it_and_its_work_by_the_real_one(self) -> None:
        async def main() -> RoundTimings:
            timings = RoundTimings()
            with timings.wait("wait"), timings.stage("work"):
                await asyncio.sleep(3_600.0)
            return timings

        stages = run_virtually(main()).stages
        assert stages["wait"].total_us == 3_600_000_000 > stages["work"].total_us

    def test_waiting_for_nothing_is_an_error(self) -> None:
        async def main() -> None:
            await asyncio.sleep(3.0)
            await asyncio.Event().wait()

        with pytest.raises(NothingToWaitFor, match=r"after 3\.0 s"):
            run_virtually(main())


class TestTimes:
    def test_tables_are_lines_between_their_points_and_go_on_beyond(self) -> None:
        table = ((2, 10.0), (4, 20.0), (8, 28.0))
        assert [interpolate(table, size) for size in (1, 2, 3, 8, 10)] == pytest.approx([10, 10, 15, 28, 32])

    def test_rounds_are_padded_and_attention_takes_the_larger_of_its_two_times(self) -> None:
        times = RoundTimes(((8, 4.0), (16, 8.0)), ns_per_context=10.0, ns_per_row_context=1.0, row_sizes=(8, 16))
        assert times.seconds(3, 0, 0) == pytest.approx(4e-3)
        assert times.seconds(9, 1_000, 9_000) == pytest.approx(8e-3 + 10e-6)
        assert times.seconds(16, 1_000, 16_000) == pytest.approx(8e-3 + 16e-6)
        assert times.seconds(17, 0, 0) == pytest.approx(8.5e-3)
        assert times.measured_us == ((8, 4_000), (16, 8_000))

    def test_a_router_does_one_round_s_work_after_another(self) -> None:
        processor = RouterProcessor(1e-3)
        assert [processor.work(now, 2) for now in (0.0, 0.001, 0.1)] == pytest.approx([0.002, 0.004, 0.102])

    @pytest.mark.parametrize("name", [CPU, H200])
    def test_larger_rounds_and_drafts_take_longer(self, name: str) -> None:
        kind = hardware(name)
        for table in (kind.round_times.by_rows, kind.draft_times.by_blocks):
            assert list(table) == sorted(table)
            assert [ms for _, ms in table] == sorted(ms for _, ms in table)
        assert kind.round_times.seconds(8, 8_000, 8_000) > kind.round_times.seconds(8, 0, 0)

    def test_unknown_hardware_is_named(self) -> None:
        with pytest.raises(InvalidRequest, match="'abacus'"):
            hardware("abacus")


class TestPlayback:
    @given(st.integers(0, 20), st.integers(0, 60), st.integers(1, 1 << 31), st.integers(0, 300))
    def test_a_seed_says_everything(
        self, playback: Playback, trace: int, start: int, num_prompt_tokens: int, output: int
    ) -> None:
        script = Script(trace, start, num_prompt_tokens)
        assert Script.of_seed(script.seed) == script
        tokens = playback.output(script, output + playback.depth + 1)
        place = playback.place(script, num_prompt_tokens + output)
        assert playback.tokens_at(place, playback.depth + 1).tolist() == tokens[output:].tolist()

    @pytest.mark.parametrize("num_rows", [1, 2, 8, 40])
    def test_trees_are_accepted_as_a_loop_over_children_accepts_them(self, playback: Playback, num_rows: int) -> None:
        rng = np.random.default_rng(num_rows)
        pieces, expected, places = [], [], []
        for index in range(200):
            script = Script(index % len(playback.temperatures), index % 50, 10)
            root, *wanted = playback.output(script, playback.depth + 1).tolist()
            tree = _random_tree(rng, root, playback.draft(script, 10)[0], num_rows)
            pieces.append(TreeRows(SequenceKey("s", 1), 10, tree))
            places.append(playback.place(script, 10))
            expected.append(_accepted(tree, wanted))
        assert playback.num_accepted(pieces, places) == expected
        assert num_rows == 1 or sum(expected) > 0


def _random_tree(rng: np.random.Generator, root: int, candidate_ids: TokenIds, num_rows: int) -> DraftTree:
    """Of the first four candidates of each depth, siblings distinct; it ends early where there are no more."""
    tokens, depths, taken = [root], [0], {0: set[int]()}  # by depth: the children of the last node there
    for depth in random_depths(rng, num_rows, len(candidate_ids)).tolist()[1:]:
        free = [token for token in candidate_ids[depth - 1, :4].tolist() if token not in taken[depth - 1]]
        if not free:
            break
        taken[depth - 1].add(token := int(rng.choice(free)))
        taken[depth] = set()
        tokens.append(token)
        depths.append(depth)
    return DraftTree(np.asarray(tokens, np.int32), np.asarray(depths, np.int32))


def _accepted(tree: DraftTree, wanted: list[int]) -> int:
    """The oracle: from node to child, as long as there is the right one."""
    above, row, depth = parents(tree.depths).tolist(), 0, 0
    while depth < len(wanted):
        right = [r for r in range(1, tree.num_rows) if above[r] == row and tree.token_ids[r] == wanted[depth]]
        if not right:
            break
        (row,) = right
        depth += 1
    return depth


class TestFigures:
    def test_fairness(self) -> None:
        assert Fairness.of_rates([2.0, 2.0, 2.0]) == Fairness(pytest.approx(1.0), pytest.approx(1.0))
        assert Fairness.of_rates([4.0, 0.0, 0.0, 0.0]) == Fairness(pytest.approx(0.25), None)
        assert Fairness.of_rates([1.0, 2.0, 4.0]).worst_of_median == pytest.approx(0.5)
        assert Fairness.of_rates([]) == Fairness(None, None)

    def test_spread(self) -> None:
        assert Spread.of_seconds([]) == Spread(0, None, None)
        spread = Spread.of_seconds([0.001 * value for value in range(101)])
        assert (spread.count, spread.p50, spread.p99) == (101, pytest.approx(50.0), pytest.approx(99.0))


def test_noise_of_rounds_lasts_and_is_none_on_average() -> None:
    noise = RoundNoise(0.2, np.random.default_rng(0))
    factors = np.array([noise.factor(14e-3) for _ in range(100_000)])
    assert factors.mean() == pytest.approx(1.0, abs=0.01)
    logs = np.log(factors)
    assert logs.std() == pytest.approx(0.2, abs=0.01)
    found = [float(np.corrcoef(logs[:-lag], logs[lag:])[0, 1]) for lag in (1, 10, 50)]
    assert found == pytest.approx([0.46, 0.28, 0.12], abs=0.03)
    assert RoundNoise(0.0, np.random.default_rng(0)).factor(1.0) == 1.0
