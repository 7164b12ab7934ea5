"""How long drafts wait for the drafter's model: what tells that a drafter has more to do than it can."""

from __future__ import annotations


class DraftLag:
    """Noted on the model's thread, read on the event loop. A note that falls between the two may be lost: no harm."""

    def __init__(self) -> None:
        self._total_s = 0.0
        self._count = 0

    def note(self, waited_s: float) -> None:
        """Of one batch: from when its contexts were complete until the model began with it."""
        self._total_s += waited_s
        self._count += 1

    def take_mean_ms(self) -> float:
        """Of the batches since the last call; 0 where there were none."""
        total_s, count = self._total_s, self._count
        self._total_s, self._count = 0.0, 0
        return total_s / count * 1e3 if count else 0.0
