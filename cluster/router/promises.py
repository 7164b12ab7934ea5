"""`Promises`: what drafts were to bring by their levels, and what they brought."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Promised tokens after which a round counts e times less, and those that count as kept before any was seen: a single
# draft of 1.5 tokens brings none or four.
_MEMORY, _OF_TRUST = 200.0, 40.0
_LEAST_KEPT, _MOST_KEPT = 0.4, 1.2
_FADING = 0.01  # per round without drafts: what was seen is less and less believed


class Promises:
    """Of one kind of sequences: the part of a level that so many nodes bring is taken as one for all kinds, and where
    that is too low for some, it is too high for others."""

    def __init__(self) -> None:
        # Sums of the tokens that drafts were to bring, and of those they brought, with one micro-batch and with two.
        self._promised, self._brought = [0.0, 0.0], [0.0, 0.0]

    def kept(self, num_micro_batches: int) -> float:
        """Of the tokens that levels promise, the part that comes; with the other number of micro-batches, where nothing
        was seen with this one.

        Levels tell who gains more than whom; less well how much all do, since they are carried over from other numbers
        of nodes, and since whoever picks the best of noisy ones is disappointed. A λ that is too high for that reason
        takes too few nodes.
        """
        index = num_micro_batches - 1
        if self._promised[index] == 0.0:
            index = 1 - index
        promised, brought = self._promised[index], self._brought[index]
        return min(max(brought / promised, _LEAST_KEPT), _MOST_KEPT) if promised > 0.0 else 1.0

    def observe(self, num_micro_batches: int, promised_tokens: float, brought_tokens: float) -> None:
        """What the drafts of a round were to bring, by levels alone, and what they brought."""
        index = num_micro_batches - 1
        is_first = self._promised[index] == 0.0
        remembered = math.exp(-promised_tokens / _MEMORY)
        for sums, seen in ((self._promised, promised_tokens), (self._brought, brought_tokens)):
            sums[index] = remembered * (_OF_TRUST if is_first else sums[index]) + seen
        # Levels change meanwhile: with the other number of micro-batches they would not promise what they did.
        self._fade(1 - index, self._brought[index] / self._promised[index])

    def fade(self, num_micro_batches: int) -> None:
        """A round had no drafts."""
        self._fade(num_micro_batches - 1, 1.0)

    def _fade(self, index: int, kept: float) -> None:
        self._brought[index] += _FADING * (kept * self._promised[index] - self._brought[index])


@dataclass(frozen=True, slots=True)
class Promise:
    """`tokens`: that drafts are to bring in a round, weighted, as their levels say."""

    promises: Promises
    tokens: float

    def observe(self, brought_tokens: float, num_micro_batches: int) -> None:
        """What the drafts brought."""
        self.promises.observe(num_micro_batches, self.tokens, brought_tokens)
