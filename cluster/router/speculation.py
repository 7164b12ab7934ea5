"""What speculation costs and brings on one target: how many nodes a round gets, and who is drafted for.

Of all sets of sequences to draft for, the one is taken by which the target writes the most tokens per second: λ. Of all
numbers of nodes, the one that maximises (expected tokens) − λ · (seconds of the round) (ARCHITECTURE section 4). No
drafts and no nodes are among the choices, so that speculation shrinks to nothing where it does not pay; and a little
time is set aside to see whether it pays again.

λ is that of rounds without prefill, with the sequences at hand. A moving average over all rounds would be too low where
prompts are prefilled, though tokens cost the same prefill however they are decoded; and too high or too low for a while
whenever the sequences change.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.router.latency import DraftTimeModel, RoundLoad, RoundTimeModel
from cluster.router.links import TargetLink
from cluster.router.rates import RateMeter
from cluster.router.sequence import Sequence
from cluster.router.settings import RouterSettings
from cluster.router.tree_planner import Drafted, PlannedTrees, TreePlanner
from dflash_core.trees.build import NodeBudget

Doubles = npt.NDArray[np.float64]

_GAIN_STEP = 0.15  # of the moving averages of gains
_MEAN_GAIN_STEP = 0.02
_FIRST_GAIN = 2.0  # tokens per round that a draft is thought to bring before any was seen
# Of the time, what may be lost with drafts that are not thought to pay: it is saved up for a while, and what one trial
# may be thought to lose is counted as some of its time at least.
_TRIAL_SHARE, _MOST_TRIAL_S, _LEAST_TRIAL_SHARE = 0.01, 1.0, 0.1


class Speculation:
    """Of one target: its times, its rate, and what drafts have brought."""

    def __init__(self, link: TargetLink, settings: RouterSettings, planner: TreePlanner) -> None:
        info = link.info
        self._link = link
        self._settings = settings
        self._planner = planner
        self.verify_times = RoundTimeModel(info.row_sizes, info.round_times_us)
        # From a round's result to the next request: drafting, the network, the router itself.
        self.draft_times = DraftTimeModel(())  # with drafts
        self._plain_s = 1e-3  # without
        self.rate = 0.0  # λ
        self._rates = (RateMeter(), RateMeter())  # measured with one micro-batch, with two
        self._mean_gain = _FIRST_GAIN
        self._num_gains = 0  # that were seen
        self._nodes_per_draft = 8.0
        self._mean_context = 0.0  # tokens before a root, in the last round
        self._drafted_share = 1.0  # of the running sequences
        self._trial_s = 0.0  # set aside and not used yet
        self.num_micro_batches = 1

    @property
    def _load(self) -> int:
        """Sequences on the target."""
        return max(1, len(self._link.sequences))

    def as_dict(self) -> dict[str, Any]:
        """What is known of the target at present, for export; times in seconds."""
        return {
            "num_sequences": len(self._link.sequences),
            "num_micro_batches": self.num_micro_batches,
            "tokens_per_second": self.rate,
            "tokens_per_draft": self._mean_gain,
            "nodes_per_draft": self._nodes_per_draft,
            "drafted_share": self._drafted_share,
            "verify_times": self.verify_times.as_dict(),
            "between_with_drafts": self.draft_times.as_dict(),
            "between_without_drafts_s": self._plain_s,
        }

    def rate_with(self, num_micro_batches: int) -> float | None:
        """Measured at the present load; None where it was not seen."""
        return self._rates[num_micro_batches - 1].rate(self._load)

    def advantage_of_halves(self, num_sequences: int) -> float:
        """The rate with two micro-batches over that with one, by the times of both."""

        def parts(num: float) -> tuple[float, float]:
            blocks = num * self._drafted_share
            return self._verify_s(round(num), blocks), self._between(round(blocks))

        verify_all, between_all = parts(num_sequences)
        verify_half, between_half = parts(num_sequences / 2)
        return (verify_all + between_all) / max(2.0 * verify_half, verify_half + between_half)

    # --- nodes

    def node_budget(
        self, fixed: RoundLoad, mean_context: float, drafted: tuple[Drafted, ...], num_roots: int, most_nodes: int
    ) -> NodeBudget:
        """What nodes cost, or how many there are where that is fixed.

        Args:
            fixed: the round without nodes. mean_context: of the roots.
            most_nodes: what the target's rows leave.
        """
        if self._settings.tree_budget is not None:
            pool = sum(self._planner.share(entry.sequence) for entry in drafted)
            return NodeBudget.of(min(pool, most_nodes))
        most = min(most_nodes, sum(self._planner.most_nodes(entry.sequence) for entry in drafted))
        table = self.verify_times.table(fixed.num_rows + most, fixed, mean_context)
        seconds = self._cycle(table[fixed.num_rows :], self._between(len(drafted)))
        return NodeBudget(seconds, self.rate)

    def _cycle(self, verify_s: Doubles, between_s: float) -> Doubles:
        """The target's time that a round takes up: with two in flight, what lies between rounds hides behind the other
        one, as far as that is long enough."""
        if self.num_micro_batches == 1:
            return verify_s + between_s
        hidden: Doubles = np.maximum(verify_s, 0.5 * (verify_s + between_s))
        return hidden

    def _between(self, num_blocks: int) -> float:
        return self._plain_s if num_blocks == 0 else max(self._plain_s, self.draft_times.seconds(num_blocks))

    # --- drafts

    def choose_drafted(self, ready: list[Sequence], running: list[Sequence]) -> list[Sequence]:
        """Those for which a draft is worth its time, and now and then others, to see whether it would be.

        Args:
            ready: of the running ones, who could be drafted for. running: all of the micro-batch.
        """
        wanting = [sequence for sequence in ready if self._planner.most_nodes(sequence) > 0]
        if not running:
            return wanting
        wanting.sort(key=self._gain, reverse=True)
        counts = np.unique([0, len(wanting), *(1 << i for i in range(len(wanting).bit_length()))])
        counts = counts[counts <= len(wanting)]
        gains = np.concatenate([[0.0], np.cumsum([self._gain(sequence) for sequence in wanting])])[counts]
        seconds = np.array([self._seconds_with(len(running), int(count)) for count in counts])
        rates = (sum([sequence.weight for sequence in running]) + gains) / seconds
        best = int(np.argmax(rates))
        self.rate = float(rates[best])
        if self._settings.tree_budget is not None:
            return wanting
        # What trials of the others would cost: their time, less what they may be expected to bring.
        costs = (seconds - seconds[best]) - (gains - gains[best]) / self.rate
        affordable = best + int(np.flatnonzero(costs[best:] <= max(self._trial_s, 0.0))[-1])
        if affordable > best:
            self._trial_s -= max(float(costs[affordable]), _LEAST_TRIAL_SHARE * float(seconds[affordable]))
        return wanting[: counts[affordable]]

    def is_worth_waiting(self, missing: list[Sequence], seconds: float) -> bool:
        """Whether these sequences' drafts are worth more than what the target writes in that time."""
        return sum(map(self._gain, missing)) > self.rate * seconds

    def _seconds_with(self, num_roots: int, num_blocks: int) -> float:
        return float(self._cycle(np.asarray(self._verify_s(num_roots, num_blocks)), self._between(num_blocks)))

    def _verify_s(self, num_roots: int, num_blocks: float) -> float:
        """Of a round without prefill in which so many of the sequences are drafted, with the usual number of nodes."""
        rows = min(self._link.info.max_rows, num_roots + round(num_blocks * self._nodes_per_draft))
        context = self._mean_context
        return self.verify_times.seconds(RoundLoad(rows, num_roots, num_roots * context, rows * context))

    def _gain(self, sequence: Sequence) -> float:
        """Tokens per round that its drafts have brought, weighted."""
        gain = self._mean_gain if sequence.gain is None else sequence.gain
        return sequence.weight * min(gain, sequence.num_wanted - 1)

    # --- learning

    def observe_round(
        self, load: RoundLoad, planned: PlannedTrees, verify_s: float, cycle_s: float | None, tokens: float
    ) -> None:
        """One round that went well.

        Args:
            load: that was done.
            verify_s: that the target was busy with it.
            cycle_s: since the round before ended on this target; None after a time of idleness.
            tokens: that it wrote, weighted.
        """
        self.verify_times.observe(load, verify_s)
        self._mean_context = load.context_tokens / max(1, load.num_sequences)
        if cycle_s is not None:
            self._rates[self.num_micro_batches - 1].observe(self._load, tokens, cycle_s)
            self._trial_s = min(self._trial_s + _TRIAL_SHARE * cycle_s, _MOST_TRIAL_S)
        if planned.drafted:
            per_draft = sum(tree.num_nodes for tree in planned.trees) / len(planned.drafted)
            self._nodes_per_draft += _GAIN_STEP * (per_draft - self._nodes_per_draft)
        if planned.trees:
            self._drafted_share += _GAIN_STEP * (len(planned.drafted) / len(planned.trees) - self._drafted_share)

    def observe_between(self, num_blocks: int, seconds: float) -> None:
        """From a round's result to the request of the next."""
        if num_blocks == 0:
            bounded = min(seconds, 4.0 * self._plain_s)  # an outlier is none of its business
            self._plain_s += _GAIN_STEP * (bounded - self._plain_s)
        else:
            self.draft_times.observe(num_blocks, seconds)

    def observe_draft(self, sequence: Sequence, expected_tokens: float, num_accepted: int) -> None:
        """What came of one sequence's draft: the mean of what was expected, which is less noisy, and what came."""
        gain = 0.5 * (expected_tokens - 1.0 + num_accepted)
        self._num_gains += 1
        self._mean_gain += max(_MEAN_GAIN_STEP, 1.0 / (self._num_gains + 1)) * (gain - self._mean_gain)
        before = self._mean_gain if sequence.gain is None else sequence.gain
        sequence.num_gains += 1
        sequence.gain = before + max(_GAIN_STEP, 1.0 / (sequence.num_gains + 1)) * (gain - before)
