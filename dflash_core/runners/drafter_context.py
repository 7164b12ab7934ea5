"""`DrafterContext`: whose context a drafter holds and how far, in pages of keys and values per draft layer.

```
held:   | 0 … context_len − 1 |                 of one attempt
chunk:             | start … start + n − 1 |    the overlap is skipped, a gap refused
```
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dflash_core.cache.blocks import BlockManager, OutOfBlocks
from dflash_core.cache.pools import KvPool, KvShape, Slots, slots_of
from dflash_core.cache.tables import TableArray
from dflash_core.contracts import ContextStatus, SequenceKey
from dflash_core.models.drafter import DFlashDrafter
from dflash_core.models.shared_tensors import EmbeddingAndHead
from dflash_core.runners.cache_memory import CacheMemory, CacheNeeds, size_cache, unique_bytes
from dflash_core.runners.settings import DrafterSettings

_CPU_BYTES = 64 << 20


@dataclass(slots=True)
class HeldContext:
    """One sequence's context at its newest attempt."""

    attempt: int
    context_len: int = 0
    block_table: list[int] = field(default_factory=list)
    out_of_blocks: str | None = None  # why the last chunk was not stored
    table_array: TableArray = field(default_factory=TableArray)


@dataclass(frozen=True, slots=True)
class NewContext:
    """Which of the features just given are new, and where they go."""

    positions: npt.NDArray[np.int64]  # [num_new]
    slots: Slots  # [num_new]
    num_known: int  # features in front of them, which are here already


class DrafterContext:
    """Committed tokens' keys and values for every draft layer, computed once when a feature arrives."""

    def __init__(self, model: DFlashDrafter, num_blocks: int, kv_block_size: int) -> None:
        self.pool = KvPool(_kv_shape(model), num_blocks, kv_block_size, max_tree_rows=0, device=model.fc.weight.device)
        self._blocks = BlockManager(num_blocks, kv_block_size)
        self._held: dict[str, HeldContext] = {}

    @property
    def kv_block_size(self) -> int:
        return self._blocks.kv_block_size

    @property
    def free_blocks(self) -> int:
        return self._blocks.free_blocks

    @property
    def num_sequences(self) -> int:
        return len(self._held)

    def find(self, key: SequenceKey) -> HeldContext | None:
        """None where the sequence, or this attempt at it, is not open here."""
        held = self._held.get(key.sequence_id)
        return held if held is not None and held.attempt == key.attempt else None

    def block_table(self, key: SequenceKey) -> npt.NDArray[np.int32]:
        """Valid until the next call for the same sequence."""
        held = self._held[key.sequence_id]
        return held.table_array.of(held.block_table, held.context_len // self.kv_block_size)

    def is_stale(self, key: SequenceKey) -> bool:
        held = self._held.get(key.sequence_id)
        return held is not None and key.attempt < held.attempt

    def open(self, key: SequenceKey, context_len: int) -> None:
        """Makes room for a sequence. A higher attempt keeps the first `context_len` positions of the one before, a
        lower one is dropped, the same one changes nothing."""
        held = self._held.get(key.sequence_id)
        if held is None:
            self._held[key.sequence_id] = HeldContext(key.attempt)
        elif key.attempt > held.attempt:
            held.attempt = key.attempt
            held.out_of_blocks = None
            if context_len < held.context_len:
                held.context_len = max(context_len, 0)
                keep = self._blocks.blocks_for(held.context_len)
                surplus, held.block_table = held.block_table[keep:], held.block_table[:keep]
                held.table_array = TableArray()  # what was fixed may now become others
                self._blocks.free(surplus)

    def release(self, key: SequenceKey) -> None:
        """Frees the sequence, unless a higher attempt holds it."""
        held = self._held.get(key.sequence_id)
        if held is not None and key.attempt >= held.attempt:
            self._blocks.free(held.block_table)
            del self._held[key.sequence_id]

    def release_all(self) -> None:
        for held in self._held.values():
            self._blocks.free(held.block_table)
        self._held.clear()

    def append(self, key: SequenceKey, start: int, num_tokens: int) -> tuple[ContextStatus, NewContext | None]:
        """Makes room for features at positions start …; whoever calls it must store what is new of them.

        On any status but OK there is nothing new. Where blocks run out there is nothing either: the status is OK, the
        length stays behind, and `HeldContext.out_of_blocks` says why.
        """
        held = self.find(key)
        if held is None:
            return (ContextStatus.STALE_ATTEMPT if self.is_stale(key) else ContextStatus.UNKNOWN), None
        if start > held.context_len:
            return ContextStatus.GAP, None
        end = start + num_tokens
        if end <= held.context_len:
            return ContextStatus.OK, None
        try:
            self._blocks.extend(held.block_table, end)
        except OutOfBlocks as error:
            held.out_of_blocks = error.message
            return ContextStatus.OK, None
        held.out_of_blocks = None
        first, held.context_len = held.context_len, end
        slots = slots_of(held.block_table, first, end, self.kv_block_size)
        return ContextStatus.OK, NewContext(np.arange(first, end), slots, first - start)


def size_context(name: str, model: DFlashDrafter, shared: EmbeddingAndHead, settings: DrafterSettings) -> CacheMemory:
    """The memory of a drafter's context. Raises `InvalidSettings` where not even one block fits: a sequence without
    room is decoded without drafts."""
    borrowed = [tensor for tensor in (shared.embedding, shared.head, shared.head_bias) if tensor is not None]
    needs = CacheNeeds(
        owner=f"drafter {name}",
        device=model.fc.weight.device,
        weight_bytes=unique_bytes([*model.parameters(), *model.buffers(), *borrowed]),
        kv_bytes_per_token=_kv_shape(model).bytes_per_token,
        feature_bytes_per_token=0,
        staging_bytes=0,
        max_model_len=model.config.max_position_embeddings,
        min_tokens=settings.kv_block_size,
        default_cpu_bytes=_CPU_BYTES,
    )
    return size_cache(needs, settings)


def _kv_shape(model: DFlashDrafter) -> KvShape:
    config = model.config
    return KvShape(config.num_layers, config.num_kv_heads, config.head_dim, model.fc.weight.dtype)
