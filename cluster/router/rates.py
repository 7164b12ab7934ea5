"""λ: the tokens per second that a target has lately written, which is what a second of it is worth."""

from __future__ import annotations

_MEMORY_ROUNDS = 32


class RateMeter:
    """Fading sums of tokens and seconds, one pair for each power of two of sequences: the rate follows the load.

    Time in which there was nothing to do is not told to it.
    """

    def __init__(self) -> None:
        self._sums: dict[int, tuple[float, float]] = {}

    def observe(self, num_sequences: int, tokens: float, seconds: float) -> None:
        """`tokens` as the budget weighs them."""
        if num_sequences < 1 or seconds <= 0.0:
            return
        load, kept = num_sequences.bit_length(), 1.0 - 1.0 / _MEMORY_ROUNDS
        old_tokens, old_seconds = self._sums.get(load, (0.0, 0.0))
        self._sums[load] = (old_tokens * kept + tokens, old_seconds * kept + seconds)

    def rate(self, num_sequences: int) -> float | None:
        """At about this load; None where it has not been seen yet."""
        sums = self._sums.get(num_sequences.bit_length())
        return None if sums is None else sums[0] / sums[1]
