"""The sequences on a target, and which rows of a round they may run.

Whatever is wrong with a row concerns its sequence alone: `admit_prefill` and `admit_tree` raise `RowsRefused`, which
becomes that sequence's outcome.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from dflash_core.cache.blocks import BlockManager, OutOfBlocks
from dflash_core.cache.prefix import HashChain, PrefixCache
from dflash_core.cache.tables import TableArray
from dflash_core.contracts import OutcomeStatus, Prefill, Refill, SamplingParams, SequenceKey, TreeRows
from dflash_core.errors import ProtocolError
from dflash_core.trees.structure import check_tree

NO_TOKEN = -1


class RowsRefused(Exception):
    """Why a sequence's rows do not run this round."""

    def __init__(self, status: OutcomeStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(slots=True)
class SequenceState:
    """One attempt at a sequence. Between rounds its KV, features and tokens cover positions 0 … cached_len - 1."""

    key: SequenceKey
    sampling: SamplingParams
    drafter_address: str  # "" sends nowhere
    features_from: int  # the next position whose feature goes to the drafter
    opened: int  # when, by count: of two sequences the one with the lower number is older
    block_table: list[int] = field(default_factory=list)
    cached_len: int = 0
    bonus_token: int = NO_TOKEN  # the root of the next tree; none until the prompt is done
    token_ids: list[int] = field(default_factory=list)  # all committed ones
    chain: HashChain | None = None  # of the blocks that are findable; None without a prefix cache
    table_array: TableArray = field(default_factory=TableArray)


class TargetSequences:
    """Every sequence of a target by its id, and the blocks they hold.

    Where blocks run out, sequences are preempted, the youngest first: so the oldest always comes to its end, and then
    the next one.
    """

    def __init__(
        self, blocks: BlockManager, vocab_size: int, max_model_len: int, prefix_cache: PrefixCache | None
    ) -> None:
        """`vocab_size` counts padding: a padding id in a tree is merely never accepted."""
        assert blocks.blocks_for(max_model_len) <= blocks.num_blocks, "a sequence might not fit even alone"
        self.blocks = blocks
        self.prefix_cache = prefix_cache
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._by_id: dict[str, SequenceState] = {}  # the oldest first
        self._preempted: list[SequenceKey] = []  # since they were last taken
        self._num_opened = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def cached_len(self, key: SequenceKey) -> int:
        """Of this very attempt; 0 where it is not here."""
        sequence = self._by_id.get(key.sequence_id)
        return sequence.cached_len if sequence is not None and sequence.key == key else 0

    def opened(self, key: SequenceKey) -> int:
        """When, by count; of what is not here (yet), later than all that is."""
        sequence = self._by_id.get(key.sequence_id)
        return sequence.opened if sequence is not None and sequence.key == key else self._num_opened

    def take_preempted(self) -> tuple[SequenceKey, ...]:
        """Whoever lost its blocks since the last call."""
        preempted, self._preempted = tuple(self._preempted), []
        return preempted

    @contextmanager
    def without_prefix_cache(self) -> Iterator[None]:
        """Sequences that are opened and released meanwhile find no blocks and leave none to be found."""
        cache, self.prefix_cache = self.prefix_cache, None
        try:
            yield
        finally:
            self.prefix_cache = cache

    def release(self, key: SequenceKey) -> None:
        """Forgets the attempt, or a lower one; a higher one stays. Unknown sequences are no error."""
        sequence = self._by_id.get(key.sequence_id)
        if sequence is not None and sequence.key.attempt <= key.attempt:
            self._drop(sequence)

    def release_all(self) -> None:
        for sequence in list(self._by_id.values()):
            self._drop(sequence)
        self._preempted.clear()

    def refill(self, refill: Refill) -> SequenceState | None:
        """Points the sequence's features at a drafter; None where this attempt is not here (nothing to send)."""
        sequence = self._by_id.get(refill.key.sequence_id)
        if sequence is None or sequence.key != refill.key:
            return None
        sequence.drafter_address = refill.drafter_address
        sequence.features_from = max(0, refill.from_position)
        return sequence

    def admit_prefill(self, prefill: Prefill) -> SequenceState:
        """The chunk's sequence, with blocks for it. Raises `RowsRefused`; a sequence it would open is then not.

        A sequence that is opened stands where its hits end: `prefill.skip(sequence.cached_len)` is to be computed.
        """
        self._check_tokens(prefill)
        if prefill.start == 0:
            self._make_way(prefill.key)
            sequence = self._open(prefill)
        else:
            sequence = self._find(prefill.key)
            if sequence.cached_len != prefill.start or sequence.bonus_token != NO_TOKEN:
                raise RowsRefused(
                    OutcomeStatus.MISMATCH,
                    f"the chunk starts at {prefill.start}, the target has {sequence.cached_len} tokens"
                    + (" and its prompt is done" if sequence.bonus_token != NO_TOKEN else ""),
                )
        end = min(sequence.cached_len + len(prefill.token_ids), prefill.start + prefill.num_known)
        self._extend(sequence, end)
        self._by_id[prefill.key.sequence_id] = sequence
        return sequence

    def admit_tree(self, rows: TreeRows, max_rows: int) -> SequenceState:
        """The tree's sequence, with a block for its root (the accepted rows get theirs at commit, if there are any:
        nobody is preempted for a guess). Raises `RowsRefused`."""
        sequence = self._find(rows.key)
        try:
            check_tree(rows.tree, self._vocab_size, max_rows, self._max_model_len - 1 - sequence.cached_len)
        except ProtocolError as error:
            raise RowsRefused(OutcomeStatus.INVALID, error.message) from error
        root = int(rows.tree.token_ids[0])
        if rows.root_position != sequence.cached_len or root != sequence.bonus_token:
            raise RowsRefused(
                OutcomeStatus.MISMATCH,
                f"the tree's root is {root} at {rows.root_position}, "
                f"the target's is {sequence.bonus_token} at {sequence.cached_len}",
            )
        self._extend(sequence, sequence.cached_len + 1)
        return sequence

    def _check_tokens(self, prefill: Prefill) -> None:
        num_tokens, known = len(prefill.token_ids), prefill.known_tokens
        if num_tokens == 0 or prefill.start < 0:
            raise RowsRefused(OutcomeStatus.INVALID, f"a chunk of {num_tokens} tokens at {prefill.start} is none")
        if len(prefill.following) and (prefill.start > 0 or prefill.is_last):
            raise RowsRefused(
                OutcomeStatus.INVALID,
                f"{len(prefill.following)} tokens follow a chunk at {prefill.start} (last: {prefill.is_last}): "
                "only a first chunk that is not the last tells them",
            )
        end = prefill.start + len(known)
        if end > self._max_model_len:
            raise RowsRefused(
                OutcomeStatus.INVALID, f"{end} tokens do not fit the target's context of {self._max_model_len}"
            )
        least, most = int(np.min(known)), int(np.max(known))
        if least < 0 or most >= self._vocab_size:
            raise RowsRefused(
                OutcomeStatus.INVALID, f"token ids must lie in [0, {self._vocab_size}), got {least} to {most}"
            )

    def _open(self, prefill: Prefill) -> SequenceState:
        """With the blocks that the prefix cache has of it."""
        features_from = max(0, prefill.features_from)
        sequence = SequenceState(
            prefill.key, prefill.sampling, prefill.drafter_address, features_from, self._num_opened
        )
        self._num_opened += 1
        if self.prefix_cache is not None:
            known = prefill.known_tokens
            sequence.chain = self.prefix_cache.take(sequence.block_table, known)
            sequence.cached_len = len(sequence.block_table) * self.blocks.kv_block_size
            sequence.token_ids = known[: sequence.cached_len].tolist()
        return sequence

    def _find(self, key: SequenceKey) -> SequenceState:
        if key in self._preempted:
            raise RowsRefused(OutcomeStatus.OUT_OF_BLOCKS, f"{key.sequence_id} was preempted by an older sequence")
        sequence = self._by_id.get(key.sequence_id)
        if sequence is None or sequence.key.attempt < key.attempt:
            here = "" if sequence is None else f", only attempt {sequence.key.attempt}"
            raise RowsRefused(
                OutcomeStatus.UNKNOWN_SEQUENCE, f"attempt {key.attempt} of {key.sequence_id} is not here{here}"
            )
        _refuse_stale(sequence, key)
        return sequence

    def _make_way(self, key: SequenceKey) -> None:
        """A first chunk replaces lower attempts."""
        sequence = self._by_id.get(key.sequence_id)
        if sequence is None:
            return
        _refuse_stale(sequence, key)
        if sequence.key == key:
            raise RowsRefused(
                OutcomeStatus.MISMATCH,
                f"attempt {key.attempt} of {key.sequence_id} is open already, with {sequence.cached_len} tokens",
            )
        self._drop(sequence)

    def _extend(self, sequence: SequenceState, num_tokens: int) -> None:
        """Gives it blocks for so many tokens, those of younger sequences where too few are free.

        Raises `RowsRefused` where there is no younger one: then it is preempted itself.
        """
        while True:
            try:
                self.blocks.extend(sequence.block_table, num_tokens)
                return
            except OutOfBlocks as error:
                youngest = next(reversed(self._by_id.values()), sequence)
                if youngest.opened > sequence.opened:
                    self._preempt(youngest)
                    continue
                self._preempt(sequence)
                raise RowsRefused(OutcomeStatus.OUT_OF_BLOCKS, error.message) from error

    def _preempt(self, sequence: SequenceState) -> None:
        self._drop(sequence)
        self._preempted.append(sequence.key)

    def _drop(self, sequence: SequenceState) -> None:
        """Also one that is not open yet, of which there are only blocks."""
        self.blocks.free(sequence.block_table)
        self._by_id.pop(sequence.key.sequence_id, None)


def _refuse_stale(sequence: SequenceState, key: SequenceKey) -> None:
    if sequence.key.attempt > key.attempt:
        raise RowsRefused(
            OutcomeStatus.STALE_ATTEMPT, f"attempt {key.attempt} was replaced by {sequence.key.attempt} here"
        )
