"""Replicas time themselves when they are loaded, and leave no trace of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import count, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dflash_core.contracts import Outcome, OutcomeStatus, RoundRequest, RoundResult, SequenceKey
from dflash_core.errors import CheckpointMismatch
from dflash_core.runners.drafter import DrafterRunner
from dflash_core.runners.round_timing import time_rounds
from dflash_core.runners.self_timing import climb, doubling
from dflash_core.runners.settings import DrafterSettings, TargetSettings
from dflash_core.runners.target import TargetRunner
from tests.core.target_models import decode_plainly, make_subject, random_prompt
from tests.tiny import TinyPair, make_tiny_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return make_tiny_pair(tmp_path_factory.mktemp("pair"))


class SimulatedClock:
    """Steps of n take n seconds, and as long again what is around them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timed: list[int] = []

    def time_step(self, size: int) -> list[float]:
        self.timed.append(size)
        self.now += 2.0 * size
        return [size * 9.0, size * 1.0]

    def __call__(self) -> float:
        return self.now


def test_the_ladder_ends_where_another_step_would_exceed_the_budget() -> None:
    clock = SimulatedClock()
    # 2 + 4 + 8 + 16 s are spent after 8; as long again would end at 46.
    assert climb([1, 2, 4, 8, 16], clock.time_step, 45.0, clock) == tuple((n, n * 10**6) for n in (1, 2, 4, 8))
    assert clock.timed == [*[1, 2, 4, 8, 8, 4, 2, 1] * 4, 1, 2, 4, 8]
    assert climb([1, 2, 4, 8, 16], clock.time_step, 46.0, clock)[-1] == (16, 16_000_000)


def test_passes_end_where_another_would_exceed_six_budgets() -> None:
    clock = SimulatedClock()
    climb([10], clock.time_step, 13.0, clock)  # 20 s each: 78 s are three
    assert clock.timed == [10] * 3


def test_the_first_size_is_timed_whatever_it_takes() -> None:
    clock = SimulatedClock()
    assert climb([100, 200], clock.time_step, 1.0, clock) == ((100, 100 * 10**6),)
    assert climb([], clock.time_step, 1.0, clock) == ()


def test_a_machine_with_slow_moments_has_a_smooth_curve_and_its_usual_speed() -> None:
    """It is half as fast for four steps, then as fast as it can be for three: it changes in every pass."""
    steps = count()

    def time_step(size: int) -> list[float]:
        return [(10.0 + size) * (2.0 if next(steps) % 7 < 4 else 1.0)] * 2

    sizes = (1, 2, 4, 8)
    found = climb(sizes, time_step, 1.0, lambda: 0.0)
    first = found[0][1] * 1e-6
    assert [time_us * 1e-6 / first for _, time_us in found] == pytest.approx([(10 + n) / 11 for n in sizes], rel=1e-4)
    assert first == pytest.approx(11.0 * 2 ** (4 / 7), rel=0.2)


@given(st.integers(0, 5000))
def test_doubling_ends_with_the_largest(largest: int) -> None:
    sizes = doubling(largest)
    assert sizes == sorted(set(sizes))
    assert sizes[-1:] == ([largest] if largest else [])
    assert all(size & (size - 1) == 0 and 2 * size >= after for size, after in pairwise(sizes))


def test_a_loaded_target_says_what_its_rounds_take(pair: TinyPair) -> None:
    settings = TargetSettings(kv_block_size=4, num_blocks=128, max_rows=48, max_tree_rows=24, device="cpu")
    runner = TargetRunner.load(str(pair.target), str(pair.drafter), settings)
    info = runner.info
    rows = [count for count, _ in info.round_times_us]
    assert rows == [1, 2, 4, 8, 16, 24][: len(rows)]
    assert rows
    assert all(time_us > 0 for _, time_us in info.round_times_us)
    assert info.row_sizes == ()
    assert (runner.num_sequences, runner.free_blocks) == (0, 128)
    assert runner._sequences.blocks.findable_blocks == 0


def test_sequences_run_as_before(pair: TinyPair) -> None:
    """With the prefix cache, which the timed rounds neither used nor filled."""
    subject, prompt = make_subject(), random_prompt(2, 13)
    expected = decode_plainly(subject.runner, prompt, 8)
    timed = make_subject()
    timed.runner.time_itself()
    assert timed.runner.info.round_times_us
    assert timed.runner._sequences.blocks.findable_blocks == 0
    assert decode_plainly(timed.runner, prompt, 8) == expected
    assert timed.runner._sequences.blocks.findable_blocks > 0


def test_few_blocks_end_the_ladder() -> None:
    """A sequence takes four blocks of four tokens: there is room for one, which is a tree of sixteen rows."""
    runner = make_subject(num_blocks=7, max_model_len=28).runner
    runner.time_itself()
    rows = [count for count, _ in runner.info.round_times_us]
    assert rows == [1, 2, 4, 8, 16][: len(rows)]
    assert runner.free_blocks == 7


@pytest.mark.parametrize("settings", [{"max_model_len": 8}, {"num_blocks": 3, "max_model_len": 12}, {"max_rows": 4}])
def test_where_nothing_can_be_timed_nothing_is_said(settings: dict[str, int]) -> None:
    runner = make_subject(**settings | {"max_tree_rows": 4}).runner
    runner.time_itself()
    assert runner.info.round_times_us == ()


def test_padded_sizes_are_the_ladder() -> None:
    sizes: list[int] = []

    def run_round(request: RoundRequest) -> RoundResult:
        if request.trees:
            sizes.append(sum(rows.tree.num_rows for rows in request.trees))
        ends = {x.key: len(x.token_ids) for x in request.prefills}
        ends |= {x.key: x.root_position + 1 for x in request.trees}
        outcomes = (Outcome(key, OutcomeStatus.OK, np.empty(0, np.int32), 5, end) for key, end in ends.items())
        return RoundResult(request.round_id, tuple(outcomes), 0, 0)

    info = replace(make_subject().runner.info, row_sizes=(8, 16, 24, 64, 128, 256), max_tree_rows=128)
    times = time_rounds(run_round, info, free_blocks=1000)
    assert [count for count, _ in times] == [8, 16, 24, 64, 128]
    assert sizes[:10] == [count for count, _ in times for _ in range(2)]
    assert set(sizes) == {count for count, _ in times}


def test_rows_that_do_not_run_are_an_error() -> None:
    def run_round(request: RoundRequest) -> RoundResult:
        outcome = Outcome(SequenceKey("s", 0), OutcomeStatus.INVALID, np.empty(0, np.int32), -1, 0, "no numbers")
        return RoundResult(request.round_id, (outcome,), 0, 0)

    with pytest.raises(CheckpointMismatch, match="cannot run 1 rows: no numbers"):
        time_rounds(run_round, make_subject().runner.info, free_blocks=1000)


def test_a_loaded_drafter_says_what_its_drafts_take(pair: TinyPair) -> None:
    settings = DrafterSettings(device="cpu", kv_block_size=4, num_blocks=64, max_batch_blocks=6)
    runner = DrafterRunner.load(str(pair.drafter), str(pair.target), settings)
    blocks = [count for count, _ in runner.info.draft_times_us]
    assert blocks == [1, 2, 4, 6][: len(blocks)]
    assert blocks
    assert (runner.num_sequences, runner.free_blocks) == (0, 64)


def test_a_drafter_without_room_says_nothing(pair: TinyPair) -> None:
    settings = DrafterSettings(device="cpu", kv_block_size=4, num_blocks=1)
    assert DrafterRunner.load(str(pair.drafter), str(pair.target), settings).info.draft_times_us == ()
