"""`DraftsInFlight`: what drafters were asked and have not answered yet, and how long a round waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import KeysView
from dataclasses import dataclass, field

from cluster.router.clock import now
from cluster.router.links import DrafterLink
from cluster.router.sequence import RUNNING, Sequence
from cluster.router.settings import RouterSettings
from cluster.router.speculation import Speculation
from dflash_core.contracts import DraftResult, PackedDraftBlocks, SequenceKey

# Of a drafter's answers, those that are there when one may be expected, and nearly all. With some slack, since what is
# cut off at a measured p95 is one answer in twenty that was on time.
_EXPECTED_SHARE, _LATE_SHARE = 0.5, 0.95
_SLACK = 1.5


@dataclass(slots=True)
class DraftOrder:
    """What goes to one drafter in this stage, and whose drafts come back."""

    opened: dict[SequenceKey, Sequence] = field(default_factory=dict)
    asked: dict[SequenceKey, Sequence] = field(default_factory=dict)

    @property
    def sequences(self) -> list[Sequence]:
        return [*(self.opened | self.asked).values()]

    def blocks(self) -> PackedDraftBlocks:
        """Of those asked, as they stand."""
        asked = self.asked.values()
        return PackedDraftBlocks(
            keys=[*self.asked],
            root_tokens=[sequence.token_ids[-1] for sequence in asked],
            context_lens=[sequence.root_position for sequence in asked],
            samplings=[sequence.request.sampling for sequence in asked],
            rankings=[sequence.ranking for sequence in asked],
        )


@dataclass(slots=True)
class InFlight:
    task: asyncio.Task[DraftResult]
    order: DraftOrder
    sent_at: float
    done_at: float | None = None
    was_late: bool = False  # a round has gone on without it

    def note_end(self, _: asyncio.Task[DraftResult]) -> None:
        self.done_at = now()


class DraftsInFlight:
    """At most one request per drafter: a straggler is not sent more work."""

    def __init__(self, speculation: Speculation, settings: RouterSettings) -> None:
        self._speculation = speculation
        self._settings = settings
        self._entries: dict[DrafterLink, InFlight] = {}

    @property
    def drafters(self) -> KeysView[DrafterLink]:
        return self._entries.keys()

    def add(self, link: DrafterLink, task: asyncio.Task[DraftResult], order: DraftOrder) -> None:
        entry = self._entries[link] = InFlight(task, order, now())
        task.add_done_callback(entry.note_end)

    def take_finished(self) -> list[tuple[DrafterLink, InFlight]]:
        """Those that were answered, or failed: they are in flight no more."""
        finished = [link for link, entry in self._entries.items() if entry.task.done()]
        return [(link, self._entries.pop(link)) for link in finished]

    async def wait(self) -> None:
        """Until every drafter asked last has answered, or waiting for the rest pays no more.

        First to the time at which a drafter's answer is to be expected. Then, where the drafts that are missing are
        worth more than what the target could write meanwhile, to the time within which nearly all of its answers
        come; at most `draft_timeout_ms`.
        """
        for share in (_EXPECTED_SHARE, _LATE_SHARE):
            awaited = self._awaited()
            if not awaited:
                break
            remaining = max(self._time_left(link, entry, share) for link, entry in awaited.items())
            if share == _LATE_SHARE and not self._speculation.is_worth_waiting(_missing(awaited), remaining):
                break
            if remaining > 0.0:
                await asyncio.wait([entry.task for entry in awaited.values()], timeout=remaining)
        for link, entry in self._entries.items():
            if not entry.task.done() and entry.order.asked:
                entry.was_late = True
                link.num_late += 1

    def close(self) -> None:
        """What is on its way goes on: it may carry releases."""
        for link, entry in self._entries.items():
            link.let_finish(entry.task)
        self._entries.clear()

    def _awaited(self) -> dict[DrafterLink, InFlight]:
        """Asked for this round. A straggler of an earlier one is not waited for again."""
        return {
            link: entry
            for link, entry in self._entries.items()
            if not entry.was_late and not entry.task.done() and (entry.order.asked or entry.order.opened)
        }

    def _time_left(self, link: DrafterLink, entry: InFlight, share: float) -> float:
        """Seconds until such a share of its answers would be there, with some slack for those that are on time."""
        num_blocks = max(1, len(entry.order.asked))
        if self._settings.always_waits:
            return entry.sent_at + self._settings.draft_timeout_ms / 1e3 - now()
        patience = min(_SLACK * link.times.quantile(num_blocks, share), self._settings.draft_timeout_ms / 1e3)
        return entry.sent_at + patience - now()


def _missing(awaited: dict[DrafterLink, InFlight]) -> list[Sequence]:
    return [sequence for entry in awaited.values() for sequence in entry.order.sequences if sequence.phase is RUNNING]
