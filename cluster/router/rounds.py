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
        link = self._link
        if link.num_newcomers:
            for sequence in [sequence for sequence in link.sequences if sequence.micro_batch is None]:
                first, second = link.num_in_micro_batch
                link.move(sequence, int(self.speculation.times.num_micro_batches == 2 and second < first))
        if link.num_in_micro_batch[1] == 0:  # all of them, mostly: they need not be told apart
            return list(link.sequences) if index == 0 else []
        if index == 0:
            self._second_wakes.set()
        return [sequence for sequence in link.sequences if sequence.micro_batch == index]

    def settle(self, index: int) -> None:
        """The sequences of this micro-batch are in no round now: they may change over to the other one."""
        if index == 0:
            self.speculation.times.change_to(self._split.choose(self._link))
        num_mine, num_others = self._link.num_in_micro_batch[index], self._link.num_in_micro_batch[1 - index]
        if self.speculation.times.num_micro_batches == 1:
            num_moving = num_mine if index == 1 else 0
        elif num_mine - num_others > _MOST_UNEVEN:
            num_moving = (num_mine - num_others) // 2
        else:
            num_moving = 0
        if num_moving:
            mine = [sequence for sequence in self._link.sequences if sequence.micro_batch == index]
            for sequence in mine[:num_moving]:
                self._link.move(sequence, 1 - index)
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
        first, second = self._link.num_in_micro_batch
        if index == 1:
            return second > 0
        return first > 0 or self._link.num_newcomers > 0 or (bool(self._link.releases) and second == 0)

    def verified(self, sent_at: float, ended_at: float) -> tuple[float, float | None]:
        """With two rounds in flight, the target began with the second when it had ended the first."""
        last, self._last_end = self._last_end, ended_at
        if last is None:
            return ended_at - sent_at, None
        return ended_at - max(sent_at, last), ended_at - last
