"""The KV blocks of a simulated target: counted, not stored. No prefix cache."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.simulate.playback import Script
from dflash_core.contracts import SequenceKey


@dataclass(slots=True, eq=False)
class HeldSequence:
    key: SequenceKey
    script: Script
    cached_len: int = 0
    num_blocks: int = 0
    drafter_address: str = ""
    has_root: bool = False  # its last prompt token was prefilled


class KvBlocks:
    """Who holds how many. The oldest keeps its blocks; the youngest gives way (`RoundResult.preempted`)."""

    def __init__(self, num_blocks: int, kv_block_size: int) -> None:
        self.free_blocks = num_blocks
        self._kv_block_size = kv_block_size
        self._held: dict[str, HeldSequence] = {}  # the oldest first
        self._preempted: list[SequenceKey] = []

    @property
    def num_sequences(self) -> int:
        return len(self._held)

    def open(self, key: SequenceKey, script: Script) -> HeldSequence:
        """As the youngest; an older attempt is released."""
        self.release(key)
        held = self._held[key.sequence_id] = HeldSequence(key, script)
        return held

    def find(self, key: SequenceKey) -> HeldSequence | None:
        held = self._held.get(key.sequence_id)
        return held if held is not None and held.key == key else None

    def release(self, key: SequenceKey) -> None:
        held = self._held.get(key.sequence_id)
        if held is not None and held.key.attempt <= key.attempt:
            self.free_blocks += held.num_blocks
            del self._held[key.sequence_id]

    def ages(self) -> dict[str, int]:
        """By sequence id; the oldest is 0."""
        return {sequence_id: age for age, sequence_id in enumerate(self._held)}

    def room(self, held: HeldSequence) -> int:
        """Tokens that it can cache from now on without anyone giving way."""
        return (held.num_blocks + self.free_blocks) * self._kv_block_size - held.cached_len

    def make_room(self, held: HeldSequence, num_tokens: int) -> bool:
        """For as many more tokens. The youngest give way, at last the sequence itself: False where it did."""
        while self.room(held) < num_tokens:
            youngest = next(reversed(self._held.values()))
            self._preempted.append(youngest.key)
            self.release(youngest.key)
            if youngest is held:
                return False
        return True

    def extend(self, held: HeldSequence, num_tokens: int) -> None:
        """Room was made before."""
        held.cached_len += num_tokens
        num_blocks = -(-held.cached_len // self._kv_block_size)
        self.free_blocks -= num_blocks - held.num_blocks
        held.num_blocks = num_blocks
        assert self.free_blocks >= 0, (self.free_blocks, held)

    def was_preempted(self, key: SequenceKey) -> bool:
        """Since they were taken last."""
        return key in self._preempted

    def take_preempted(self) -> tuple[SequenceKey, ...]:
        preempted, self._preempted = tuple(self._preempted), []
        return preempted
