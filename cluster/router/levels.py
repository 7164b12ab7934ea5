"""What drafts of each sequence bring, as far as known: whom to draft for, and how far that promise is kept.

A *level* is what a draft brings in tokens per round with 32 nodes; `prospects.shape_at` says what part of it others
have.
"""

from __future__ import annotations

from cluster.router.sequence import Sequence
from dflash_core.contracts import DEFAULT_RANKING
from dflash_core.trees.acceptance import context_class

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
        """By `acceptance.context_class`, for export."""
        return {str(kind): mean for kind, mean in self._means.items()}

    def level(self, sequence: Sequence) -> float:
        """Of its next draft, no more than it still wants, weighted."""
        level, most = self.lasting_level(sequence), sequence.weight * (sequence.num_wanted - 1)
        return level if level < most else most

    def lasting_level(self, sequence: Sequence) -> float:
        """Of a draft, whatever the sequence still wants, weighted."""
        level = self._mean(_kind(sequence)) if sequence.gain_level is None else sequence.gain_level
        return sequence.weight * level

    def observe(self, sequence: Sequence, level: float, is_paying: bool) -> None:
        """One draft's gain, over the part of a level that as many nodes bring."""
        kind = _kind(sequence)
        mean = self._mean(kind)
        num_seen = self._num_seen[kind] = self._num_seen.get(kind, 0) + 1
        mean += max(_MEAN_STEP if is_paying else _TRIAL_STEP, 1.0 / (num_seen + 1)) * (level - mean)
        self._means[kind] = mean
        sequence.num_gains += 1
        own = mean if sequence.gain_level is None else sequence.gain_level
        seen = mean + _OWN_SHARE * (level - mean)
        sequence.gain_level = own + max(_STEP, 1.0 / (sequence.num_gains + _DRAFTS_OF_MEAN)) * (seen - own)

    # --- promises

    def kept(self, num_micro_batches: int) -> float:
        """Of the tokens that levels promise, the part that comes.

        Levels tell who gains more than whom; less well how much all do, since they are carried over from other numbers
        of nodes, and since whoever picks the best of noisy ones is disappointed. A λ that is too high for that reason
        takes too few nodes.
        """
        promised, brought = self._promised[num_micro_batches - 1], self._brought[num_micro_batches - 1]
        return min(max(brought / promised, _LEAST_KEPT), _MOST_KEPT) if promised > 0.0 else 1.0

    def observe_promise(self, num_micro_batches: int, promised_tokens: float, brought_tokens: float) -> None:
        """What the drafts of a round were to bring, by levels alone, and what they brought."""
        index = num_micro_batches - 1
        for kept, seen in ((self._promised, promised_tokens), (self._brought, brought_tokens)):
            kept[index] += (_PROMISE_STEP if kept[index] else 1.0) * (seen - kept[index])

    def fade(self, num_micro_batches: int) -> None:
        """A round had no drafts."""
        index = num_micro_batches - 1
        self._brought[index] += _FADING * (self._promised[index] - self._brought[index])

    def _mean(self, kind: int) -> float:
        return self._means.get(kind, FIRST_LEVEL)


def _kind(sequence: Sequence) -> int:
    """Requests with the same one are sampled alike."""
    return context_class(sequence.request.sampling, DEFAULT_RANKING)
