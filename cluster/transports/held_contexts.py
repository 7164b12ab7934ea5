"""How much context a drafter holds of each sequence, and waiting for more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from dflash_core.contracts import ContextAck, ContextStatus, SequenceKey


class HeldContexts:
    """Kept on the event loop from what the runner answered, so that waiting needs no model thread."""

    def __init__(self) -> None:
        self._lengths: dict[SequenceKey, int] = {}
        self._hopeless: set[SequenceKey] = set()  # a feature was lost: what is missing does not come by itself
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._lengths)

    def opened(self, key: SequenceKey) -> None:
        self._lengths.setdefault(key, 0)

    def kept(self, key: SequenceKey, context_len: int) -> None:
        """What the runner kept of an older attempt, told later: the sequence may be gone by then."""
        if key in self._lengths:
            self._lengths[key] = context_len
            self._notify()

    def appended(self, ack: ContextAck) -> None:
        if ack.key not in self._lengths:
            return
        if ack.status is ContextStatus.OK:
            self._lengths[ack.key] = ack.context_len
            self._hopeless.discard(ack.key)
        elif ack.status is ContextStatus.GAP:
            self._hopeless.add(ack.key)
        self._notify()

    def source_broke(self, keys: Iterable[SequenceKey]) -> None:
        self._hopeless.update(key for key in keys if key in self._lengths)
        self._notify()

    def forget(self, key: SequenceKey) -> None:
        self._lengths.pop(key, None)
        self._hopeless.discard(key)
        self._notify()

    async def wait_for(self, needs: Mapping[SequenceKey, int], timeout_s: float) -> None:
        """Until every sequence has the context it needs or will not get it by itself, or the time is over."""
        if not self._is_waited_for(needs):
            return
        try:
            async with asyncio.timeout(timeout_s):
                while self._is_waited_for(needs):
                    await self._changed.wait()
        except TimeoutError:
            pass

    def _is_waited_for(self, needs: Mapping[SequenceKey, int]) -> bool:
        """A sequence that is not open here is not waited for: its block is answered with an error."""
        return any(
            self._lengths.get(key, context_len) < context_len and key not in self._hopeless
            for key, context_len in needs.items()
        )

    def _notify(self) -> None:
        """Wakes all who wait now; those who wait from now on wait for the next change."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
