"""The rounds of one target: one micro-batch with all of its sequences, or two halves that take turns."""

from __future__ import annotations

import asyncio
from itertools import count

from cluster.router.links import TargetLink
from cluster.router.micro_batch import MicroBatch, RoundHost
from cluster.router.sequence import Sequence
from cluster.router.settings import RouterSettings
from cluster.router.speculation import Speculation
from cluster.router.splitting import SplitChooser
from cluster.router.timings import RoundTimings
from cluster.router.tree_planner import TreePlanner

_MOST_UNEVEN = 2  # sequences that one half may have more than the other


class TargetRounds:
    """Implements `micro_batch.Rounds`.

    With two halves, the target verifies one while the other is drafted, planned and on its way: a target runs the
    rounds it gets one after the other.

        one    │ verify all       │ draft, plan │ verify all       │ draft, plan │
        two    │ verify A  │ verify B  │ verify A  │ verify B  │
                           │ draft A …   │ draft B …
    """

    def __init__(
        self, link: TargetLink, host: RoundHost, planner: TreePlanner, settings: RouterSettings, timings: RoundTimings
    ) -> None:
        self._link = link
        self.speculation = Speculation(link, settings, planner)
        self._split = SplitChooser(self.speculation, settings.micro_batches)
        self._round_ids = count(1)
        self._last_end: float | None = None  # of a round on this target; None after idling
        self._second_wakes = asyncio.Event()
        self._batches = [
            MicroBatch(index, self, link, host, planner, self.speculation, settings, timings)
            for index in range(settings.micro_batches)
        ]

    async def run(self) -> None:
        """Ends when the target is lost, or by cancellation."""
        async with asyncio.TaskGroup() as group:
            for index, batch in enumerate(self._batches):
                group.create_task(batch.run(), name=f"micro-batch {index} of {self._link.info.model}")

    @property
    def next_round_id(self) -> int:
        return next(self._round_ids)

    def sequences_of(self, index: int) -> list[Sequence]:
        """Newcomers go where fewer are."""
        sizes = [0] * len(self._batches)
        for sequence in self._link.sequences:
            if sequence.micro_batch is not None:
                sizes[sequence.micro_batch] += 1
        mine: list[Sequence] = []
        for sequence in self._link.sequences:
            if sequence.micro_batch is None:
                sequence.micro_batch = 1 if self.speculation.times.num_micro_batches == 2 and sizes[1] < sizes[0] else 0
                sizes[sequence.micro_batch] += 1
            if sequence.micro_batch == index:
                mine.append(sequence)
        if sizes[-1] and index == 0:
            self._second_wakes.set()
        return mine

    def settle(self, index: int) -> None:
        """The sequences of this micro-batch are in no round now: they may change over to the other one."""
        if index == 0:
            self.speculation.times.change_to(self._split.choose(self._link))
        mine = [sequence for sequence in self._link.sequences if sequence.micro_batch == index]
        others = sum(sequence.micro_batch == 1 - index for sequence in self._link.sequences)
        if self.speculation.times.num_micro_batches == 1:
            moving = mine if index == 1 else []
        elif len(mine) - others > _MOST_UNEVEN:
            moving = mine[: (len(mine) - others) // 2]
        else:
            return
        for sequence in moving:
            sequence.micro_batch = 1 - index
        if moving:
            self._link.wake.set()
            self._second_wakes.set()

    async def work(self, index: int) -> None:
        """The first one also sends releases, where the second has nothing to send them with."""
        self._last_end = None
        wake = self._link.wake if index == 0 else self._second_wakes
        while not (self._link.is_lost or self.has_work(index)):
            wake.clear()
            await wake.wait()

    def has_work(self, index: int) -> bool:
        homes = {sequence.micro_batch for sequence in self._link.sequences}
        if index == 1:
            return 1 in homes
        return 0 in homes or None in homes or (bool(self._link.releases) and 1 not in homes)

    def verified(self, sent_at: float, ended_at: float) -> tuple[float, float | None]:
        """With two rounds in flight, the target began with the second when it had ended the first."""
        last, self._last_end = self._last_end, ended_at
        if last is None:
            return ended_at - sent_at, None
        return ended_at - max(sent_at, last), ended_at - last
