"""What the router holds of each target and each drafter: who sits there, and what to say with the next message."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from itertools import count
from typing import Any

from cluster.router.admission import fits
from cluster.router.latency import DraftTimeModel
from cluster.router.prefixes import PREFIX_BLOCK_TOKENS, KnownPrefixes
from cluster.router.sequence import Sequence
from dflash_core.contracts import Drafter, DrafterInfo, DraftRequest, DraftResult, SequenceKey, Target, TargetInfo

logger = logging.getLogger(__name__)

MOST_LATE_ROUNDS = 3


class TargetLink:
    """One target, its sequences and what is known of its blocks.

    Admission is optimistic: few sequences write all the tokens they may. One joins when there are blocks for what it
    has to prefill and one more to write on, beside what those that are there claim in the same way. Should they all
    grow beyond that, the target preempts the youngest. Nobody claims more than it can come to need, so that an empty
    target takes whatever fits it, and the head of the queue never waits for ever.

        num_blocks │ held by sequences │ claims │ free for newcomers │
                                       └───────── free_blocks ───────┘

    Claims are summed as they change: whoever changes a sequence's tokens or `cached_len` calls `recount` with it.
    """

    def __init__(self, target: Target, max_running: int) -> None:
        self.target = target
        self.info: TargetInfo = target.info
        self._kv_block_size = self.info.kv_block_size
        # A root each must leave rows for a prefill chunk, or newcomers would starve.
        self.max_running = max(1, min(max_running, self.info.max_tree_rows, self.info.max_rows // 2))
        self.sequences: dict[Sequence, None] = {}  # in the order in which the target opens them: the oldest first
        self.free_blocks = self.info.num_blocks  # as the target last told, and what was given back since
        self.num_claimed_blocks = 0  # by the sequences that are here, beyond those that they hold
        self.num_uncached_tokens = 0  # of theirs, those that are still to be computed, as far as known
        self.num_in_micro_batch = [0, 0]  # sequences of either micro-batch
        self.prefixes = KnownPrefixes(max(1, self.info.num_blocks * self.info.kv_block_size // PREFIX_BLOCK_TOKENS))
        self.releases: list[SequenceKey] = []
        self.wake = asyncio.Event()
        self.is_lost = False

    # --- whether one more may join

    @property
    def has_a_place(self) -> bool:
        """Whether anybody may join at all."""
        return len(self.sequences) < self.max_running and self.num_claimed_blocks < self.free_blocks

    def could_hold(self, sequence: Sequence) -> bool:
        """Whether it would fit an empty target."""
        return fits(self.info, sequence.num_total)

    def has_room_for(self, sequence: Sequence) -> bool:
        if not self.could_hold(sequence) or len(self.sequences) >= self.max_running:
            return False
        return self.num_blocks_lacking(sequence) <= 0

    def num_blocks_lacking(self, sequence: Sequence) -> int:
        """How many more must come free before there are enough for it; 0 or less where there are."""
        return self.num_claimed_blocks + self.claim(sequence) - self.free_blocks

    def claim(self, sequence: Sequence) -> int:
        """Blocks that it will take soon: for its committed tokens and one more, unless it can never come to need it."""
        size = self._kv_block_size  # once a round and sequence: no calls in here
        soon = -(-len(sequence.token_ids) // size) + 1
        most = -(-sequence.num_total // size)
        return max(0, (soon if soon < most else most) + -sequence.cached_len // size)

    def num_known_tokens(self, sequence: Sequence) -> int:
        """Of its first tokens, those that the target's prefix cache has, as far as known."""
        size = self.info.kv_block_size
        num_usable = (len(sequence.token_ids) - 1) // size * size  # one token at least is computed
        return min(self.prefixes.match(sequence.prefix_hashes) // size * size, num_usable)

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._kv_block_size)

    # --- who is here

    def admit(self, sequence: Sequence) -> None:
        self.sequences[sequence] = None
        sequence.target = self
        # Until its first chunk tells: whoever comes next must not take a prefix that is there for work to be done.
        sequence.num_expected_tokens = self.num_known_tokens(sequence)
        self.prefixes.add(sequence.prefix_hashes)
        self.recount(sequence)
        self.wake.set()

    def recount(self, sequence: Sequence) -> None:
        """Brings the sums up to date with a sequence that is here."""
        claim = self.claim(sequence)
        num_uncached = len(sequence.token_ids) - max(sequence.cached_len, sequence.num_expected_tokens)
        if claim != sequence.num_claimed_blocks:
            self.num_claimed_blocks += claim - sequence.num_claimed_blocks
            sequence.num_claimed_blocks = claim
        if num_uncached != sequence.num_uncached_tokens:
            self.num_uncached_tokens += num_uncached - sequence.num_uncached_tokens
            sequence.num_uncached_tokens = num_uncached

    def recount_all(self, sequences: Iterable[Sequence]) -> None:
        """Of those of a round that are still here."""
        for sequence in sequences:
            if sequence.target is self:
                self.recount(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Gives its blocks back: on the target with the next round, and here already, since that round first releases.

        Blocks that it did not compute itself are not counted: others may hold them too.
        """
        if not self.is_lost:
            sequence.hash_committed()
            self.prefixes.add(sequence.prefix_hashes)
        self.drop(sequence)
        self.release(sequence.key)
        self.free_blocks += self._num_blocks(sequence.cached_len) - self._num_blocks(sequence.num_hit_tokens)

    def drop(self, sequence: Sequence) -> None:
        """Forgets a sequence that the target does not hold."""
        del self.sequences[sequence]
        self.num_claimed_blocks -= sequence.num_claimed_blocks
        self.num_uncached_tokens -= sequence.num_uncached_tokens
        sequence.num_claimed_blocks = sequence.num_uncached_tokens = sequence.num_expected_tokens = 0
        self.move(sequence, None)
        sequence.target = None

    @property
    def num_newcomers(self) -> int:
        """Sequences that are in no micro-batch yet."""
        return len(self.sequences) - sum(self.num_in_micro_batch)

    def move(self, sequence: Sequence, micro_batch: int | None) -> None:
        """To a micro-batch, or out of the one that it is in."""
        if sequence.micro_batch is not None:
            self.num_in_micro_batch[sequence.micro_batch] -= 1
        if micro_batch is not None:
            self.num_in_micro_batch[micro_batch] += 1
        sequence.micro_batch = micro_batch

    def reopen(self, sequence: Sequence) -> None:
        """The target will hold it anew, as the youngest. Its blocks count as held until the target tells."""
        self.release(sequence.key)
        del self.sequences[sequence]
        self.sequences[sequence] = None

    def release(self, key: SequenceKey) -> None:
        self.releases.append(key)
        self.wake.set()

    def take_releases(self) -> tuple[SequenceKey, ...]:
        releases, self.releases = tuple(self.releases), []
        return releases


class DrafterLink:
    """One drafter, how many sequences stick to it, and how long its answers take."""

    def __init__(self, drafter: Drafter) -> None:
        self.drafter = drafter
        self.info: DrafterInfo = drafter.info
        self.times = DraftTimeModel(self.info.draft_times_us)
        self.num_late = 0  # rounds in a row that went on without its drafts
        self.num_sequences = 0
        self.is_lost = False
        self.batch_ids = count(1)
        self._releases: list[SequenceKey] = []
        self._unawaited: set[asyncio.Task[DraftResult]] = set()

    @property
    def address(self) -> str:
        return self.info.address

    def as_dict(self) -> dict[str, Any]:
        return {
            "address": self.address,
            "num_sequences": self.num_sequences,
            "is_slow": self.is_slow,
            "times": self.times.as_dict(),
        }

    @property
    def is_slow(self) -> bool:
        """Its sequences had better move to another one."""
        return self.num_late >= MOST_LATE_ROUNDS

    @property
    def is_fine(self) -> bool:
        """Its sequences may stay."""
        return not (self.is_lost or self.is_slow)

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
