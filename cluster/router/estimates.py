"""`Estimates`: what rounds of one target take and what drafts bring, learned from rounds that ran."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.router.latency import RoundLoad
from cluster.router.levels import DraftLevels
from cluster.router.links import TargetLink
from cluster.router.promises import Promises
from cluster.router.prospects import NODES, Prospects, num_drafts_to_try, prospects, shape_at
from cluster.router.sequence import Sequence
from cluster.router.settings import RouterSettings
from cluster.router.target_times import TargetTimes
from cluster.router.tree_planner import PlannedTrees

Doubles = npt.NDArray[np.float64]

_STEP = 0.15  # of the moving average of nodes


@dataclass(frozen=True, slots=True)
class ObservedRound:
    """One that went well.

    Attributes:
        load: that was done.
        verify_s: that the target was busy with it.
        taken_up_s: since the round before ended on this target; None after a time of idleness.
        feeds: some drafter.
        num_micro_batches: of the target, when it ran.
    """

    load: RoundLoad
    planned: PlannedTrees
    verify_s: float
    taken_up_s: float | None
    feeds: bool
    num_micro_batches: int


class Estimates:
    """Attributes:
    times: the target's, and its drafters'.
    levels: what drafts bring, by sequence.
    row_s: of the target's time, what a further row costs, at the load that was looked at last.
    """

    def __init__(self, link: TargetLink, settings: RouterSettings) -> None:
        self._link = link
        self.times = TargetTimes(link.info)
        self.levels = DraftLevels()
        self.row_s = 0.0
        self._nodes_per_draft = 8.0
        self._shape = shape_at(self._nodes_per_draft)  # of the gain at 32 nodes, what so many bring
        fixed = settings.tree_budget
        sizes = NODES[settings.max_tree_nodes >= NODES] if fixed is None else np.array([float(max(1, fixed))])
        self._sizes: Doubles = sizes  # nodes per draft that may be chosen
        self._mean_context = 0.0  # tokens before a root, in the last round
        self._num_quiet_rounds = 0  # in a row, that fed no drafter

    def as_dict(self) -> dict[str, Any]:
        """For export; times in seconds."""
        return {
            "tokens_per_draft_of_32_nodes": self.levels.as_dict(),
            "nodes_per_draft": self._nodes_per_draft,
            **self.times.as_dict(),
        }

    # --- what follows for further rounds

    def prospects(
        self,
        levels: Doubles,
        promises: Promises,
        weight: float,
        num_roots: int,
        num_micro_batches: int,
        belief: float = 1.0,
    ) -> Prospects:
        """Of rounds without prefill, at the context that the sequences have.

        Args:
            levels: `[sequences that could be drafted for]`, falling. weight: the tokens of a round without drafts.
            belief: 0 … 1, in what was seen with so many micro-batches.
        """
        info = self._link.info
        most_rows = max(num_roots, min(info.max_rows, info.max_tree_rows))
        verify_s = self.times.verify_s(most_rows, self.load(num_roots), self._mean_context, num_micro_batches, belief)
        self.row_s = float(verify_s[-1] - verify_s[num_roots]) / max(1, len(verify_s) - num_roots)
        levels = levels * promises.kept(num_micro_batches) ** belief
        num_drafts = num_drafts_to_try(len(levels))
        between_s = self.times.all_between_s(num_drafts, num_micro_batches)
        plain, drafted = self.times.overruns(num_micro_batches)
        return prospects(
            num_drafts,
            levels,
            weight,
            num_roots,
            verify_s,
            between_s,
            num_micro_batches,
            self._sizes,
            (plain**belief, drafted**belief),
        )

    def load(self, num_roots: int) -> RoundLoad:
        """Of a round of these alone."""
        context_tokens = num_roots * self._mean_context
        return RoundLoad(num_roots, num_roots, context_tokens, context_tokens)

    def tokens_of_drafts(self, sequences: list[Sequence]) -> float:
        """That one of each brings with as many nodes as drafts have at present."""
        return float(self.levels.of_next_drafts(sequences).sum()) * self._shape

    # --- learning

    def observe_round(self, done: ObservedRound) -> bool:
        """Returns whether it has told what rounds of its kind take up."""
        load, planned, taken_up_s = done.load, done.planned, done.taken_up_s
        self._num_quiet_rounds = 0 if done.feeds else self._num_quiet_rounds + 1
        # Prefill is none of it, nor is a round that only releases. One without drafts that feeds drafters, or that they
        # are fed in by the one before, takes longer than such rounds do where drafts do not pay.
        is_of_its_kind = planned.num_drafted > 0 or self._num_quiet_rounds > 1
        tells = False
        if taken_up_s is not None and 0 < load.num_sequences == planned.num_trees and is_of_its_kind:
            tells = True
            self.times.observe_cycle(load, planned.num_drafted, taken_up_s, done.num_micro_batches)
        self.times.observe_round(load, done.verify_s, done.num_micro_batches)
        self._mean_context = load.context_tokens / max(1, load.num_sequences)
        if planned.num_drafted:
            per_draft = planned.num_nodes / planned.num_drafted
            self._nodes_per_draft += _STEP * (per_draft - self._nodes_per_draft)
            self._shape = shape_at(self._nodes_per_draft)
        return tells

    def observe_drafts(
        self,
        sequences: list[Sequence],
        expected_tokens: list[float],
        num_accepted: list[int],
        shape: float,
        is_paying: bool,
    ) -> float:
        """What came of drafts: the mean of what was expected, which is less noisy, and what came.

        `shape`: `shape_at` the nodes per draft of their round, fewer in a trial than else. Returns what came, weighted.
        """
        gains = [
            0.5 * (expected - 1.0 + accepted) for expected, accepted in zip(expected_tokens, num_accepted, strict=True)
        ]
        self.levels.observe(sequences, [gain / shape for gain in gains], is_paying)
        return sum([sequence.weight * gain for sequence, gain in zip(sequences, gains, strict=True)])
