"""What drafts of each sequence bring, as far as known: whom to draft for.

A *level* is what a draft brings in tokens per round with 32 nodes; `prospects.shape_at` says what part of it others
have.
"""

from __future__ import annotations

from collections.abc import Sequence as Many

import numpy as np
import numpy.typing as npt

from cluster.router.promises import Promises
from cluster.router.sequence import Sequence

Doubles = npt.NDArray[np.float64]

_MIXED = -1  # in place of a kind
FIRST_LEVEL = 2.0  # before any draft of a kind of request was seen
_MEAN_STEP, _TRIAL_STEP = 0.02, 0.05  # of a mean over sequences; while all are on trial, few tell of the rest
# Of a sequence's own: the last ten drafts or so count, the first ones as if its kind's mean had been seen six times,
# and the mean stays a fifth of it. On outputs of the embedded pair this foretells the next four drafts with a sixth
# less squared error at temperature 1, an eighth at 0, than a plain moving average of seven.
_STEP, _DRAFTS_OF_MEAN, _OWN_SHARE = 0.1, 6, 0.8


class DraftLevels:
    """Of one target's sequences. Those that are sampled alike have a mean in common, which a new one begins with."""

    def __init__(self) -> None:
        self._means: dict[int, float] = {}
        self._num_seen: dict[int, int] = {}
        self._promises: dict[int, Promises] = {}

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

    def promises(self, sequences: Many[Sequence]) -> Promises:
        """How far levels are kept where these are decided about: those of one kind have an account of their own, all
        mixtures have one."""
        kinds = {sequence.kind for sequence in sequences}
        return self._promises.setdefault(kinds.pop() if len(kinds) == 1 else _MIXED, Promises())

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
