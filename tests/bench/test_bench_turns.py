"""Arms in turns: whose turn it is, whose clock runs, and what is under way when a turn ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from cluster.bench.arms import Cell
from cluster.bench.samples import Decoded, GroupPrompt, PromptGroup
from cluster.bench.turns import Gate, Lane, StandingLoop, decode_in_turns
from cluster.router.clock import now
from cluster.router.timeline import Timeline

GROUP, CELL = PromptGroup((GroupPrompt((1,), 1, 0),)), Cell(0.0, 1)
TURN_S = 0.02


class _Worker:
    """A token a round of `round_s` on a model that all share; tells who uses it when."""

    def __init__(self, name: str, round_s: float, num_rounds: int, gate: Gate, model: _Model) -> None:
        self._name, self._round_s, self._num_rounds = name, round_s, num_rounds
        self._gate, self._model = gate, model
        self.num_tokens = 0

    async def decode(self, group: PromptGroup, cell: Cell, timeline: Timeline | None) -> Decoded:
        begin = now()
        self.num_tokens = 0
        for _ in range(self._num_rounds):
            async with self._gate:
                await self._model.run(self._name, self._round_s)
            self.num_tokens += 1
        seconds = now() - begin
        release = asyncio.create_task(self._release())
        await asyncio.sleep(0)
        assert not release.done()
        self._release_task = release
        return Decoded(seconds, self.num_tokens, ())

    async def _release(self) -> None:
        """As a router does, whether somebody waits for it or not."""
        async with self._gate:
            await self._model.run(f"release of {self._name}", 0.0)


class _Model:
    def __init__(self) -> None:
        self.executor = ThreadPoolExecutor(max_workers=1)
        self.rounds: list[str] = []
        self.is_busy = False

    async def run(self, name: str, seconds: float) -> None:
        await asyncio.get_running_loop().run_in_executor(self.executor, self._run, name, seconds)

    def rounds_of(self, *names: str) -> list[str]:
        """Without releases."""
        return [name for name in self.rounds if name in names]

    def _run(self, name: str, seconds: float) -> None:
        self.is_busy = True
        time.sleep(seconds)
        self.rounds.append(name)
        self.is_busy = False


class _Lanes:
    def __init__(self) -> None:
        self.model = _Model()
        self._lanes: list[Lane] = []

    def add(self, name: str, round_s: float, num_rounds: int) -> Lane:
        gate = Gate()
        worker = _Worker(name, round_s, num_rounds, gate, self.model)
        self._lanes.append(Lane(StandingLoop(), gate, worker, (self.model.executor,)))
        return self._lanes[-1]

    def close(self) -> None:
        for lane in self._lanes:
            lane.close()
        self.model.executor.shutdown()


@pytest.fixture
def lanes() -> Iterator[_Lanes]:
    found = _Lanes()
    yield found
    found.close()


def test_an_arm_has_the_models_for_itself_and_its_clock_stands_while_others_decode(lanes: _Lanes) -> None:
    """As long as each would take alone: were the others' turns counted, it would be twice that."""
    arms = [lanes.add(name, 0.004, 40) for name in "ab"]
    begin = time.perf_counter()
    decoded = decode_in_turns(arms, GROUP, CELL, TURN_S)
    took_s = time.perf_counter() - begin
    assert [one.num_tokens for one in decoded] == [0, 0]  # no outputs
    assert [one.timed_tokens for one in decoded] == [40, 40]
    alone_s = 40 * 0.004
    assert all(alone_s <= one.seconds for one in decoded)
    assert sum(one.seconds for one in decoded) <= took_s
    changes = sum(one != other for one, other in pairwise(lanes.model.rounds_of("a", "b")))
    assert changes >= 4  # of 40 rounds a turn has seven at most, and nobody is two turns ahead


def test_whoever_has_written_less_goes_next_so_that_all_end_together(lanes: _Lanes) -> None:
    arms = [lanes.add("slow", 0.006, 30), lanes.add("fast", 0.002, 30)]
    decode_in_turns(arms, GROUP, CELL, TURN_S)
    rounds = lanes.model.rounds_of("slow", "fast")
    num_alone = next(num for num, name in enumerate(reversed(rounds)) if name != rounds[-1])
    assert num_alone <= 15  # a turn has twelve at most; one after the other it would be 30


def test_a_turn_ends_when_nothing_is_under_way(lanes: _Lanes) -> None:
    arm = lanes.add("a", 0.2, 2)
    arm.begin(GROUP, CELL, 0.0)
    assert arm.take_turn(0.01) is None
    assert not lanes.model.is_busy
    assert lanes.model.rounds == ["a"]  # it was let finish, and no other was begun
    assert arm.num_tokens <= 1
    stood_at = arm.loop.time()
    assert stood_at >= 0.2
    time.sleep(0.02)
    assert arm.loop.time() == stood_at
    decoded = arm.take_turn()
    assert decoded is not None
    assert decoded.timed_tokens == 2


def test_what_an_arm_releases_at_the_end_is_in_its_last_turn_though_the_gate_was_closing(lanes: _Lanes) -> None:
    arm = lanes.add("a", 0.2, 1)
    arm.begin(GROUP, CELL, 0.0)
    assert arm.take_turn(0.01) is not None  # over before the round is
    assert lanes.model.rounds == ["a", "release of a"]


def test_idle_time_passes_between_groups_alone_and_never_back(lanes: _Lanes) -> None:
    arm = lanes.add("a", 0.001, 1)
    arm.begin(GROUP, CELL, 5.0)
    decoded = arm.take_turn()
    assert decoded is not None
    assert decoded.seconds < 5.0
    later = arm.loop.time()
    assert later > 5.0
    arm.begin(GROUP, CELL, 1.0)
    assert arm.loop.time() == later


def test_what_an_arm_raises_is_raised_in_its_turn(lanes: _Lanes) -> None:
    arm = lanes.add("a", -1.0, 1)
    with pytest.raises(ValueError, match="sleep length"):
        decode_in_turns([arm], GROUP, CELL, TURN_S)
