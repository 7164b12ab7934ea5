"""Arms that take turns of a fraction of a second, so that all of them meet the same machine.

Whatever else runs on a machine slows it for seconds at a time, often by more than two arms differ. Arms that decode the
same prompts one after the other meet different moments of it; in turns, each that is behind going next, they meet the
same ones.

    arm A │ decodes │         │         │ decodes │
    arm B │         │ decodes │         │         │ …
    arm C │         │         │ decodes │
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from cluster.bench.arms import Arm, Cell
from cluster.bench.samples import Decoded, Decoder, PromptGroup
from cluster.router.timeline import Span, Timeline
from dflash_core.contracts import (
    Drafter,
    DrafterInfo,
    DraftRequest,
    DraftResult,
    RoundRequest,
    RoundResult,
    Target,
    TargetInfo,
)

# Many rounds, so that what an arm finds cold when its turn begins is little of it; and short beside what slows a
# machine.
_TURN_S = 0.25


class StandingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still while it is not run: the turns of others take none of its time."""

    def __init__(self) -> None:
        self._elapsed_s = 0.0  # when it was run last
        self._begin_s: float | None = None  # of the run that goes on
        super().__init__()

    def time(self) -> float:
        return self._elapsed_s + (0.0 if self._begin_s is None else time.perf_counter() - self._begin_s)

    def run_forever(self) -> None:
        self._begin_s = time.perf_counter()
        try:
            super().run_forever()
        finally:
            self._elapsed_s, self._begin_s = self.time(), None

    def pass_idly(self, until_s: float) -> None:
        """While it is not run: its clock is set to this, unless it shows more."""
        self._elapsed_s = max(self._elapsed_s, until_s)


class Gate:
    """What an arm asks of the models passes it. Where it closes, what is inside is let finish, and the rest waits."""

    def __init__(self) -> None:
        self._num_inside = 0
        self.num_waiting = 0
        self._is_open, self._is_empty = asyncio.Event(), asyncio.Event()
        self._is_open.set()
        self._is_empty.set()

    async def __aenter__(self) -> None:
        self.num_waiting += 1
        try:
            while not self._is_open.is_set():
                await self._is_open.wait()
        finally:
            self.num_waiting -= 1
        self._num_inside += 1
        self._is_empty.clear()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._num_inside -= 1
        if self._num_inside == 0:
            self._is_empty.set()

    def open(self) -> None:
        self._is_open.set()

    async def close(self) -> None:
        """Returns when nothing is inside any more."""
        self._is_open.clear()
        await self._is_empty.wait()


@dataclass(frozen=True, slots=True)
class GatedTarget:
    """Implements `dflash_core.contracts.Target`. Equal where the target behind it is: a timeline shows one."""

    target: Target
    gate: Gate = field(compare=False)

    @property
    def info(self) -> TargetInfo:
        return self.target.info

    async def run_round(self, request: RoundRequest) -> RoundResult:
        async with self.gate:
            return await self.target.run_round(request)


@dataclass(frozen=True, slots=True)
class GatedDrafter:
    """Implements `dflash_core.contracts.Drafter`, as `GatedTarget` a target."""

    drafter: Drafter
    gate: Gate = field(compare=False)

    @property
    def info(self) -> DrafterInfo:
        return self.drafter.info

    async def draft(self, request: DraftRequest) -> DraftResult:
        async with self.gate:
            return await self.drafter.draft(request)


class Lane:
    """An arm's own event loop and decoder, whose clock is that loop's."""

    def __init__(self, loop: StandingLoop, gate: Gate, decoder: Decoder, executors: Iterable[Executor]) -> None:
        """`executors`: of the models, where something may still be queued when all that passed the gate is done."""
        self.loop = loop
        self._gate = gate
        self._decoder = decoder
        self._executors = tuple(executors)
        self._task: asyncio.Task[Decoded] | None = None

    def begin(self, group: PromptGroup, cell: Cell, begin_s: float, timeline: Timeline | None = None) -> None:
        """At `begin_s` by its own clock, or later."""
        self.loop.pass_idly(begin_s)
        self._task = self.loop.create_task(self._decoder.decode(group, cell, timeline))

    @property
    def num_tokens(self) -> int:
        """Written of the group so far."""
        return self._decoder.num_tokens

    def take_turn(self, seconds: float | None = None) -> Decoded | None:
        """Decodes for so long, or to the end; None where there is more to do. Raises what the decoder raises."""
        assert self._task is not None, "nothing was begun"
        self.loop.run_until_complete(self._take_turn(self._task, seconds))
        return self._task.result() if self._task.done() else None

    async def _take_turn(self, task: asyncio.Task[Decoded], seconds: float | None) -> None:
        self._gate.open()
        await asyncio.wait((task,), timeout=seconds)
        await self._let_finish()
        while task.done() and self._gate.num_waiting:  # what it releases at the end: not in the next group's time
            self._gate.open()
            await asyncio.sleep(0)
            await self._let_finish()

    async def _let_finish(self) -> None:
        await self._gate.close()
        # A drafter takes features unasked.
        await asyncio.gather(*map(_nothing_more, self._executors))

    def close(self, closing: Coroutine[None, None, None] | None = None) -> None:
        """Ends what is decoded, runs `closing`, and ends whatever still runs on the loop."""
        self._gate.open()
        self.loop.run_until_complete(self._end(closing))
        self.loop.close()

    async def _end(self, closing: Coroutine[None, None, None] | None) -> None:
        if self._task is not None:
            await _cancel((self._task,))
        if closing is not None:
            await closing
        await _cancel(asyncio.all_tasks() - {asyncio.current_task()})


def decode_in_turns(lanes: Sequence[Lane], group: PromptGroup, cell: Cell, turn_s: float = _TURN_S) -> list[Decoded]:
    """What each of them made of the group. Of those that have more to do, that which has written least goes next."""
    begin_s = _latest(lanes)
    for lane in lanes:
        lane.begin(group, cell, begin_s)
    found: dict[Lane, Decoded] = {}
    written = dict.fromkeys(lanes, 0)  # tokens
    while written:
        lane = min(written, key=written.__getitem__)
        decoded = lane.take_turn(turn_s)
        if decoded is None:
            written[lane] = lane.num_tokens
        else:
            found[lane] = decoded
            del written[lane]
    return [found[lane] for lane in lanes]


def decode_one_by_one(
    lanes: Mapping[Arm, Lane], group: PromptGroup, cell: Cell, timeline: Timeline | None = None
) -> list[Decoded]:
    """The same, each to its end before the next one begins. The timeline shows them behind one another."""
    found = []
    for arm, lane in lanes.items():
        begin_s = _latest(lanes.values())
        lane.begin(group, cell, begin_s, timeline)
        decoded = lane.take_turn()
        assert decoded is not None, f"{arm.name} was not given a turn without end"
        found.append(decoded)
        if timeline is not None:
            numbers = {"temperature": cell.temperature, "concurrency": cell.concurrency}
            timeline.add("bench", "bench", Span(arm.name, begin_s, lane.loop.time(), numbers))
    return found


def _latest(lanes: Iterable[Lane]) -> float:
    return max(lane.loop.time() for lane in lanes)


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _nothing_more(executor: Executor) -> None:
    """Returns when all that is queued there is done."""
    await asyncio.get_running_loop().run_in_executor(executor, lambda: None)
