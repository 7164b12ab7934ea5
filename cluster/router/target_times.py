"""`TargetTimes`: what a target's rounds take, with one micro-batch and with two, and how far that can be relied on."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.router.latency import DraftTimeModel, RoundLoad, RoundTimeModel
from cluster.router.overruns import Overruns
from cluster.router.prospects import cycle_s
from dflash_core.contracts import DrafterInfo, TargetInfo

Doubles = npt.NDArray[np.float64]
Longs = npt.NDArray[np.int64]

_STEP = 0.15  # of a moving average
# Rounds after a change to two micro-batches: of the first ones, in which the halves fall into step, and of those in
# which contention is seen.
_UNSETTLED_ROUNDS, _CONTENTION_ROUNDS = 2, 8
_MOST_CONTENTION = 4.0


class TargetTimes:
    """With two micro-batches drafters draft while the target verifies. Where they share a processor or its memory, each
    is slower than alone; rows of a round that is slow for this reason are no dearer. So rounds with two teach the
    model of rounds only what remains when the *contention* is taken off: how many times longer rounds took right after
    the change than was expected of them right before it.
    """

    def __init__(self, info: TargetInfo) -> None:
        self.verify = RoundTimeModel(info.row_sizes, info.round_times_us)  # a target's round by itself
        self.num_micro_batches = 1
        # From a round's result to the next request: drafting, the network, the router itself.
        self._drafting: list[DraftTimeModel] = []  # with one micro-batch, with two; from the first draft on
        self._plain_s = [1e-3, 1e-3]
        self._contention = self._mean_seen = 1.0
        self._num_split_rounds = 0  # since the last change to two micro-batches
        self._overruns = (Overruns(), Overruns())  # with one micro-batch, with two

    def as_dict(self) -> dict[str, Any]:
        """What is known, for export; times in seconds."""
        return {
            "num_micro_batches": self.num_micro_batches,
            "verify_times": self.verify.as_dict(),
            "between_with_drafts": [model.as_dict() for model in self._drafting],
            "between_without_drafts_s": list(self._plain_s),
            "contention": self._contention,
            "overruns": [list(self.overruns(1)), list(self.overruns(2))],
        }

    # --- what rounds take

    def change_to(self, num_micro_batches: int) -> None:
        if num_micro_batches != self.num_micro_batches:
            self.num_micro_batches = num_micro_batches
            self._num_split_rounds = 0

    @property
    def knows_drafter(self) -> bool:
        return bool(self._drafting)

    def begin_drafting(self, info: DrafterInfo) -> None:
        self._drafting = [DraftTimeModel(info.draft_times_us), DraftTimeModel(info.draft_times_us)]

    def verify_s(
        self, max_rows: int, fixed: RoundLoad, mean_context: float, num_micro_batches: int, belief: float = 1.0
    ) -> Doubles:
        """`[max_rows + 1]` by rows; see `RoundTimeModel.table`. `belief`, 0 … 1: in the contention that was seen."""
        table = self.verify.table(max_rows, fixed, mean_context)
        return table if num_micro_batches == 1 else table * self._contention**belief

    def between_s(self, num_blocks: int, num_micro_batches: int) -> float:
        """From a round's result to the next request, with so many drafts."""
        plain_s = self._plain_s[num_micro_batches - 1]
        if num_blocks == 0 or not self._drafting:
            return plain_s
        return max(plain_s, self._drafting[num_micro_batches - 1].seconds(num_blocks))

    def all_between_s(self, num_blocks: Longs, num_micro_batches: int) -> Doubles:
        """`between_s` of each number, rising from 0."""
        plain_s = self._plain_s[num_micro_batches - 1]
        if not self._drafting:
            return np.full(len(num_blocks), plain_s)
        curve = self._drafting[num_micro_batches - 1].curve(int(num_blocks[-1]))
        found: Doubles = np.maximum(curve[num_blocks], plain_s)
        found[0] = plain_s
        return found

    def overruns(self, num_micro_batches: int) -> tuple[float, float]:
        """Without drafts and with: the time that rounds take up, over what they are thought to."""
        plain, drafted = self._overruns[num_micro_batches - 1].factors
        return plain, drafted

    def plain_cycle_s(self, load: RoundLoad) -> float:
        """The target's time that a round without drafts takes up."""
        num = self.num_micro_batches
        return self._cycle_s(load, 0, num) * self.overruns(num)[0]

    def _cycle_s(self, load: RoundLoad, num_blocks: int, num: int) -> float:
        """With so many micro-batches, without overruns."""
        verify_s = self.verify.seconds(load) * (1.0 if num == 1 else self._contention)
        return cycle_s(verify_s, self.between_s(num_blocks, num), num)

    # --- learning

    def observe_round(self, load: RoundLoad, verify_s: float, num_micro_batches: int) -> None:
        """The target was busy with a round for so long."""
        if num_micro_batches == 1:
            self.verify.observe(load, verify_s)
            return
        self._num_split_rounds += 1
        num_seen = self._num_split_rounds - _UNSETTLED_ROUNDS
        if num_seen > _CONTENTION_ROUNDS:
            self.verify.observe(load, verify_s / self._contention)
        elif num_seen > 0:
            seen = min(verify_s / max(self.verify.seconds(load), 1e-9), _MOST_CONTENTION)
            self._mean_seen += (seen - self._mean_seen) / num_seen
            # Less is none: halves that are faster than thought are so by themselves, and the model learns it from now
            # on. Put down to there being two, it would keep them: of all in one batch nothing is seen meanwhile.
            self._contention = max(1.0, self._mean_seen)

    def observe_cycle(self, load: RoundLoad, num_blocks: int, taken_up_s: float, num_micro_batches: int) -> None:
        """A round without prefill has taken up so much of the target's time, all that lies between rounds included."""
        thought_s = self._cycle_s(load, num_blocks, num_micro_batches)
        overruns = self._overruns[num_micro_batches - 1]
        overruns.observe(num_blocks > 0, taken_up_s / thought_s, self.verify.noise)

    def observe_between(self, num_blocks: int, seconds: float) -> None:
        """From a round's result to the request of the next."""
        index = self.num_micro_batches - 1
        if num_blocks == 0:
            bounded = min(seconds, 4.0 * self._plain_s[index])  # an outlier is none of its business
            self._plain_s[index] += _STEP * (bounded - self._plain_s[index])
        elif self._drafting:
            self._drafting[index].observe(num_blocks, seconds)
