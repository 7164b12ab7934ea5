"""What the router holds of each target and each drafter: who sits there, and what to say with the next message."""

from __future__ import annotations

import asyncio
import logging
from itertools import count

from cluster.router.admission import fits
from cluster.router.sequence import Sequence
from dflash_core.contracts import Drafter, DrafterInfo, DraftRequest, DraftResult, SequenceKey, Target, TargetInfo

logger = logging.getLogger(__name__)


class TargetLink:
    """One target, its sequences and the blocks reserved for them.

    A sequence is admitted only when the blocks of its whole length, prompt and max_tokens, are free: so no sequence
    is ever preempted by its neighbours' growth.
    """

    def __init__(self, target: Target, max_running: int) -> None:
        self.target = target
        self.info: TargetInfo = target.info
        # A root each must leave rows for a prefill chunk, or newcomers would starve.
        self.max_running = max(1, min(max_running, self.info.max_tree_rows, self.info.max_rows // 2))
        self.sequences: dict[Sequence, None] = {}  # in the order of admission
        self.reserved_blocks = 0
        self.releases: list[SequenceKey] = []
        self.wake = asyncio.Event()
        self.is_lost = False

    def num_blocks_for(self, sequence: Sequence) -> int:
        return -(-sequence.num_total // self.info.kv_block_size)

    def could_hold(self, sequence: Sequence) -> bool:
        """Whether it would fit an empty target."""
        return fits(self.info, sequence.num_total)

    def has_room_for(self, sequence: Sequence) -> bool:
        return (
            len(self.sequences) < self.max_running
            and sequence.num_total <= self.info.max_model_len
            and self.reserved_blocks + self.num_blocks_for(sequence) <= self.info.num_blocks
        )

    def admit(self, sequence: Sequence) -> None:
        self.sequences[sequence] = None
        self.reserved_blocks += self.num_blocks_for(sequence)
        sequence.target = self
        self.wake.set()

    def remove(self, sequence: Sequence) -> None:
        """Gives the sequence's blocks back here, and on the target with the next round."""
        del self.sequences[sequence]
        self.reserved_blocks -= self.num_blocks_for(sequence)
        sequence.target = None
        self.release(sequence.key)

    def release(self, key: SequenceKey) -> None:
        self.releases.append(key)
        self.wake.set()

    def take_releases(self) -> tuple[SequenceKey, ...]:
        releases, self.releases = tuple(self.releases), []
        return releases


class DrafterLink:
    """One drafter and how many sequences stick to it."""

    def __init__(self, drafter: Drafter) -> None:
        self.drafter = drafter
        self.info: DrafterInfo = drafter.info
        self.num_sequences = 0
        self.is_lost = False
        self.batch_ids = count(1)
        self._releases: list[SequenceKey] = []
        self._unawaited: set[asyncio.Task[DraftResult]] = set()

    @property
    def address(self) -> str:
        return self.info.address

    def release(self, key: SequenceKey) -> None:
        """Goes with the next request, or by itself within this turn of the event loop."""
        if not self._releases:
            asyncio.get_running_loop().call_soon(self._flush)
        self._releases.append(key)

    def take_releases(self) -> tuple[SequenceKey, ...]:
        releases, self._releases = tuple(self._releases), []
        return releases

    def _flush(self) -> None:
        releases = self.take_releases()
        if not releases or self.is_lost:
            return
        request = DraftRequest(next(self.batch_ids), releases=releases)
        self.let_finish(asyncio.ensure_future(self.drafter.draft(request)))

    def let_finish(self, task: asyncio.Task[DraftResult]) -> None:
        """Keeps a request alive whose answer nobody waits for."""
        self._unawaited.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[DraftResult]) -> None:
        self._unawaited.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A drafter that is gone holds nothing; the next draft request finds out and says so.
            logger.info("drafter %r did not answer: %s", self.address, error)

    async def close(self, timeout_s: float = 1.0) -> None:
        """Lets releases that are on their way arrive, and gives up those that take longer."""
        self._flush()
        if self._unawaited:
            _, late = await asyncio.wait(self._unawaited, timeout=timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
