"""Which nodes the trees of a round have, and what is learned from them. One for all targets of a router."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence as Many
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.requests import Strategy
from cluster.router.drafted import NOBODY, Drafted
from cluster.router.ranking import RankingTuner
from cluster.router.sequence import Sequence
from cluster.router.settings import RouterSettings
from dflash_core.contracts import PackedOutcomes, TokenIds
from dflash_core.errors import InvalidSettings
from dflash_core.trees.acceptance import GREEDY_CLASS, AcceptanceModel, context_class
from dflash_core.trees.build import NodeBudget, TreeBatch, TreeBuilder
from dflash_core.trees.candidates import NO_HISTORY, UNLIMITED_WIDTH
from dflash_core.trees.histories import TokenHistories
from dflash_core.trees.worth import Worth

# With a fixed budget, a sequence whose drafts are good may take this many times its share from those whose are not.
_MOST_SHARES = 2
_ANY_NUMBER = 1 << 30
# Of a depth so many candidates are asked for, times the root of the nodes per tree. On outputs of the embedded pair,
# trees of 4, 16 and 64 nodes from 8 candidates of a depth had within 1.5 % the acceptance length of those from 16, at
# temperature 0 and 1: later ranks are most of what drafters send and of what is copied, and bring next to nothing.
_CANDIDATES_PER_ROOT, _LEAST_CANDIDATES, _CANDIDATES_STEP = 3.0, 8, 4
_NODES_STEP = 0.05  # of the moving average of nodes per tree
_MOST_LEARNED = 16  # sequences of a round whose outcomes are learned from


@dataclass(frozen=True, slots=True)
class PlannedTrees:
    """One tree per running sequence of a round, one after the other, and what is needed to learn from outcomes."""

    token_ids: TokenIds  # [rows]
    depths: npt.NDArray[np.int32]  # [rows]
    num_rows: list[int]  # [trees], roots included
    drafted: Drafted = NOBODY
    batch: TreeBatch | None = None  # the trees; None where there was nothing to choose

    @classmethod
    def roots_only(cls, root_tokens: Many[int]) -> PlannedTrees:
        roots = np.array(root_tokens, np.int32)
        return cls(roots, np.zeros(len(roots), np.int32), [1] * len(roots))

    @property
    def num_trees(self) -> int:
        return len(self.num_rows)

    @property
    def num_drafted(self) -> int:
        return len(self.drafted.places)

    @property
    def num_nodes(self) -> int:
        """Without roots."""
        return len(self.token_ids) - len(self.num_rows)


def _limits(settings: RouterSettings) -> tuple[int, int]:
    """The most nodes of a tree: of a request that names no budget, and of one that does."""
    if settings.strategy is Strategy.NONE:
        return 0, 0
    if settings.tree_budget is None:
        return settings.max_tree_nodes, settings.max_tree_nodes
    return settings.tree_budget * _MOST_SHARES, _ANY_NUMBER


class TreePlanner:
    """Builds the trees of one round from the drafts at hand, all sequences together (ARCHITECTURE section 4)."""

    def __init__(self, settings: RouterSettings) -> None:
        self._settings = settings
        self._most_nodes, self._most_own_nodes = _limits(settings)
        self.tuner = RankingTuner()
        self._histories = TokenHistories() if settings.learns_acceptance else None
        self._nodes_per_tree = float(settings.tree_budget or settings.max_tree_nodes)
        self._draw = random.Random(0).randrange  # a fixed seed: routers are the same from run to run
        self._builder = TreeBuilder(AcceptanceModel(), self._histories, Worth() if settings.learns_acceptance else None)

    def as_dict(self) -> dict[str, Any]:
        """What was learned of the pair; `restore` takes it."""
        return {"acceptance": self._builder.model.as_dict(), "ranking": self.tuner.as_dict()}

    def restore(self, saved: dict[str, Any]) -> None:
        """Raises `InvalidSettings` for anything that `as_dict` did not make; nothing has changed then."""
        if not isinstance(saved, dict) or not isinstance(saved.get("acceptance"), dict):
            raise InvalidSettings(f"what was learned must hold 'acceptance' and 'ranking', got {saved!r:.80}")
        model, tuner = AcceptanceModel.from_dict(saved["acceptance"]), RankingTuner.from_dict(saved.get("ranking", {}))
        self._builder.model, self.tuner = model, tuner

    def most_nodes(self, sequences: Many[Sequence]) -> list[int]:
        """`[sequences]`: of the largest tree that each may get."""
        usual, most = self._most_nodes, self._most_own_nodes
        found = []
        for sequence in sequences:
            own = sequence.request.tree_budget
            found.append(0 if sequence.num_wanted <= 1 else usual if own is None else min(own, most))
        return found

    def wanting(self, sequences: Many[Sequence]) -> list[Sequence]:
        """Those that may get any nodes."""
        most = self.most_nodes(sequences)
        return [sequence for sequence, most_nodes in zip(sequences, most, strict=True) if most_nodes > 0]

    def share(self, sequence: Sequence) -> int:
        """Of a fixed budget: the nodes that it adds to the pool."""
        assert self._settings.tree_budget is not None
        own = sequence.request.tree_budget
        return self._settings.tree_budget if own is None else own

    def rank(self, sequence: Sequence) -> None:
        """Says how its next draft is to be ranked."""
        if sequence.kind != GREEDY_CLASS and self._settings.learns_acceptance:
            sampling = sequence.request.sampling
            sequence.ranking = self.tuner.choose(sampling)
            sequence.context_class = context_class(sampling, sequence.ranking)

    @property
    def num_candidates(self) -> int:
        """Of each depth, those that drafters are to send: more than trees of the usual size take nodes from."""
        wanted = _CANDIDATES_PER_ROOT * math.sqrt(self._nodes_per_tree) / _CANDIDATES_STEP
        return max(_LEAST_CANDIDATES, _CANDIDATES_STEP * math.ceil(wanted))

    def drafted(self, sequences: Many[Sequence]) -> Drafted:
        """Those that have a draft for their root and may use it."""
        return Drafted.of(sequences, self.most_nodes(sequences))

    def build(self, sequences: Many[Sequence], drafted: Drafted, budget: NodeBudget) -> PlannedTrees:
        """One tree per sequence, with nodes for those drafted, as many as the budget says."""
        roots = [sequence.token_ids[-1] for sequence in sequences]
        if not drafted.places:
            return PlannedTrees.roots_only(roots)
        self._tell_histories(drafted.sequences)
        max_width = 1 if self._settings.strategy is Strategy.CHAIN else UNLIMITED_WIDTH
        candidates = drafted.candidates(roots, self._settings.min_tree_nodes, max_width)
        batch = self._builder.build_packed(candidates, budget)
        planned = PlannedTrees(batch.token_ids, batch.depths, batch.num_rows, drafted, batch)
        self._nodes_per_tree += _NODES_STEP * (planned.num_nodes / planned.num_drafted - self._nodes_per_tree)
        return planned

    def learn(self, planned: PlannedTrees, outcomes: PackedOutcomes, teaches: Many[bool]) -> None:
        """From what became of the trees, as far as it teaches anything. To be called before the next trees of these
        sequences are built.

        Of a large round some sequences are enough, drawn anew each time: what a round teaches, and what that costs,
        need not grow with the load.
        """
        if planned.batch is None or not self._settings.learns_acceptance:
            return
        drafted = planned.drafted
        ends = list(accumulate(outcomes.num_accepted))
        written: list[list[int]] = [[] for _ in ends]
        first = self._draw(len(drafted.places))
        for turn in range(first, first + min(len(drafted.places), _MOST_LEARNED)):
            entry = turn % len(drafted.places)
            place = drafted.places[entry]
            if not teaches[place]:
                continue
            accepted = outcomes.token_ids[ends[place] - outcomes.num_accepted[place] : ends[place]]
            written[place] = tokens = [*accepted.tolist(), outcomes.bonus_tokens[place]]
            sequence = drafted.sequences[entry]
            if sequence.kind != GREEDY_CLASS:
                token_ids = drafted.drafts[entry].token_ids_of(drafted.draft_places[entry])
                self.tuner.observe(sequence.request.sampling, drafted.rankings[entry], token_ids, tokens)
        self._builder.learn(planned.batch, written)

    def forget(self, sequence: Sequence) -> None:
        """Of a sequence that has ended."""
        if self._histories is not None and sequence.history != NO_HISTORY:
            self._histories.close(sequence.history)
            sequence.history = NO_HISTORY

    def _tell_histories(self, sequences: list[Sequence]) -> None:
        if self._histories is None:
            return
        for sequence in sequences:
            if sequence.history == NO_HISTORY:
                sequence.history, sequence.num_told = self._histories.open(), 0
        untold = [sequence.token_ids[sequence.num_told :] for sequence in sequences]
        for sequence in sequences:
            sequence.num_told = sequence.root_position + 1
        self._histories.extend([sequence.history for sequence in sequences], untold)
