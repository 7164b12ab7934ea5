"""What drafts of each sequence bring, as far as known: whom to draft for, and how far that promise is kept.

A *level* is what a draft brings in tokens per round with 32 nodes; `prospects.shape_at` says what part of it others
have.
"""

from __future__ import annotations

from collections.abc import Sequence as Many

import numpy as np
import numpy.typing as npt

from cluster.router.sequence import Sequence

Doubles = npt.NDArray[np.float64]

FIRST_LEVEL = 2.0  # before any draft of a kind of request was seen
_MEAN_STEP, _TRIAL_STEP = 0.02, 0.05  # of a mean over sequences; while all are on trial, few tell of the rest
# Of a sequence's own: the last ten drafts or so count, the first ones as if its kind's mean had been seen six times,
# and the mean stays a fifth of it. On outputs of the embedded pair this foretells the next four drafts with a sixth
# less squared error at temperature 1, an eighth at 0, than a plain moving average of seven.
_STEP, _DRAFTS_OF_MEAN, _OWN_SHARE = 0.1, 6, 0.8
_PROMISE_STEP, _LEAST_KEPT, _MOST_KEPT = 0.05, 0.4, 1.2
_FADING = 0.01  # per round without drafts: what was seen of promises is less and less believed


class DraftLevels:
    """Of one target's sequences. Those that are sampled alike have a mean in common, which a new one begins with."""

    def __init__(self) -> None:
        self._means: dict[int, float] = {}
        self._num_seen: dict[int, int] = {}
        # Tokens that drafts were to bring in a round, and those they brought, with one micro-batch and with two.
        self._promised, self._brought = [0.0, 0.0], [0.0, 0.0]

    def as_dict(self) -> dict[str, float]:
        """By `Sequence.kind`, for export."""
        return {str(kind): mean for kind, mean in self._means.items()}

    def of_next_drafts(self, sequences: Many[Sequence]) -> Doubles:
        """`[sequences]`: of each one's next draft, no more than it still wants, weighted."""
        most = np.array([sequence.weight * (sequence.num_wanted - 1) for sequence in sequences], np.float64)
        return np.minimum(self.of_lasting_drafts(sequences), most)

    def of_lasting_drafts(self, sequences: Many[Sequence]) -> Doubles:
        """`[sequences]`: of a draft, whatever the sequence still wants, weighted."""
        means = self._means
        levels = [
            sequence.weight
            * (means.get(sequence.kind, FIRST_LEVEL) if sequence.gain_level is None else sequence.gain_level)
            for sequence in sequences
        ]
        return np.array(levels, np.float64)

    def observe(self, sequences: Many[Sequence], levels: Many[float], is_paying: bool) -> None:
        """`[sequences]`: the gain of a draft of each, over the part of a level that as many nodes bring."""
        means, num_seen, least_step = self._means, self._num_seen, _MEAN_STEP if is_paying else _TRIAL_STEP
        for sequence, level in zip(sequences, levels, strict=True):  # no calls in here
            kind, own = sequence.kind, sequence.gain_level
            if kind not in means:
                means[kind], num_seen[kind] = FIRST_LEVEL, 0
            count, mean = num_seen[kind] + 1, means[kind]
            mean += (level - mean) * (least_step if (count + 1) * least_step > 1.0 else 1.0 / (count + 1))
            means[kind], num_seen[kind] = mean, count
            if own is None:
                own = mean
            seen, count = mean + _OWN_SHARE * (level - mean), sequence.num_gains + 1
            step = _STEP if (count + _DRAFTS_OF_MEAN) * _STEP > 1.0 else 1.0 / (count + _DRAFTS_OF_MEAN)
            sequence.num_gains, sequence.gain_level = count, own + step * (seen - own)

    # --- promises

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

    def observe_promise(self, num_micro_batches: int, promised_tokens: float, brought_tokens: float) -> None:
        """What the drafts of a round were to bring, by levels alone, and what they brought."""
        index = num_micro_batches - 1
        for kept, seen in ((self._promised, promised_tokens), (self._brought, brought_tokens)):
            kept[index] += (_PROMISE_STEP if kept[index] else 1.0) * (seen - kept[index])
        if self._promised[index] > 0.0:
            # Levels change meanwhile: with the other number of micro-batches they would not promise what they did.
            self._fade(1 - index, self._brought[index] / self._promised[index])

    def fade(self, num_micro_batches: int) -> None:
        """A round had no drafts."""
        self._fade(num_micro_batches - 1, 1.0)

    def _fade(self, index: int, kept: float) -> None:
        self._brought[index] += _FADING * (kept * self._promised[index] - self._brought[index])
