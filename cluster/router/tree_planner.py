"""Which nodes the trees of a round have, and what is learned from them. One for all targets of a router."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cluster.requests import Strategy
from cluster.router.ranking import RankingTuner
from cluster.router.sequence import Sequence
from cluster.router.settings import RouterSettings
from dflash_core.contracts import DEFAULT_RANKING, Draft, DraftRanking, Outcome, TokenIds
from dflash_core.errors import InvalidSettings
from dflash_core.trees.acceptance import AcceptanceModel, context_class
from dflash_core.trees.build import NO_HISTORY, UNLIMITED_WIDTH, NodeBudget, TreeBatch, TreeBuilder, TreeCandidates
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


class Drafted(NamedTuple):
    """A sequence of a round that has a draft, and what the tree was built from."""

    place: int  # among the running sequences of the round
    sequence: Sequence
    draft: Draft
    ranking: DraftRanking
    max_nodes: int  # of its tree


@dataclass(frozen=True, slots=True)
class PlannedTrees:
    """One tree per running sequence of a round, one after the other, and what is needed to learn from outcomes."""

    token_ids: TokenIds  # [rows]
    depths: npt.NDArray[np.int32]  # [rows]
    num_rows: list[int]  # [trees], roots included
    drafted: tuple[Drafted, ...] = ()
    batch: TreeBatch | None = None  # the trees; None where there was nothing to choose

    @classmethod
    def roots_only(cls, root_tokens: Many[int]) -> PlannedTrees:
        roots = np.array(root_tokens, np.int32)
        return cls(roots, np.zeros(len(roots), np.int32), [1] * len(roots))

    @property
    def num_trees(self) -> int:
        return len(self.num_rows)

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


def _root_alone(sequence: Sequence, other: Draft) -> TreeCandidates:
    """Of the other draft's width, as candidates that are packed together had better be."""
    return TreeCandidates(sequence.token_ids[-1], other.token_ids[:0], other.scores[:0], max_depth=0, max_nodes=0)


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

    def most_nodes(self, sequence: Sequence) -> int:
        """The largest tree that it may get."""
        if sequence.num_wanted <= 1:
            return 0
        own = sequence.request.tree_budget
        return self._most_nodes if own is None else min(own, self._most_own_nodes)

    def share(self, sequence: Sequence) -> int:
        """Of a fixed budget: the nodes that it adds to the pool."""
        assert self._settings.tree_budget is not None
        own = sequence.request.tree_budget
        return self._settings.tree_budget if own is None else own

    def ranking(self, sequence: Sequence) -> DraftRanking:
        """How its next draft is to be ranked."""
        if not self._settings.learns_acceptance:
            return DEFAULT_RANKING
        return self.tuner.choose(sequence.request.sampling)

    @property
    def num_candidates(self) -> int:
        """Of each depth, those that drafters are to send: more than trees of the usual size take nodes from."""
        wanted = _CANDIDATES_PER_ROOT * math.sqrt(self._nodes_per_tree) / _CANDIDATES_STEP
        return max(_LEAST_CANDIDATES, _CANDIDATES_STEP * math.ceil(wanted))

    def drafted(self, sequences: Many[Sequence]) -> tuple[Drafted, ...]:
        """Those that have a draft for their root and may use it."""
        found = []
        for place, sequence in enumerate(sequences):
            draft = sequence.draft
            if draft is None or draft.context_len != sequence.root_position:
                continue
            if max_nodes := self.most_nodes(sequence):
                found.append(Drafted(place, sequence, draft, sequence.ranking, max_nodes))
        return tuple(found)

    def build(self, sequences: Many[Sequence], drafted: tuple[Drafted, ...], budget: NodeBudget) -> PlannedTrees:
        """One tree per sequence, with nodes for those drafted, as many as the budget says."""
        if not drafted:
            return PlannedTrees.roots_only([sequence.token_ids[-1] for sequence in sequences])
        self._tell_histories([entry.sequence for entry in drafted])
        batch = self._builder.build(self._candidates(sequences, drafted), budget)
        planned = PlannedTrees(batch.token_ids, batch.depths, batch.num_rows, drafted, batch)
        self._nodes_per_tree += _NODES_STEP * (planned.num_nodes / len(drafted) - self._nodes_per_tree)
        return planned

    def _candidates(self, sequences: Many[Sequence], drafted: Many[Drafted]) -> list[TreeCandidates]:
        """Of each sequence: those without a draft bring a root. By position, since names take longer: once a round and
        sequence."""
        min_nodes = self._settings.min_tree_nodes
        max_width = 1 if self._settings.strategy is Strategy.CHAIN else UNLIMITED_WIDTH
        found: list[TreeCandidates] = []
        for place, sequence, draft, ranking, max_nodes in drafted:
            if len(found) < place:
                found += [_root_alone(other, draft) for other in sequences[len(found) : place]]
            least = max(min_nodes, sequence.min_nodes)
            found.append(
                TreeCandidates(
                    sequence.token_ids[-1],
                    draft.token_ids,
                    draft.scores,
                    sequence.num_wanted - 1,
                    max_nodes,
                    least if least < max_nodes else max_nodes,
                    max_width,
                    sequence.weight,
                    context_class(sequence.request.sampling, ranking),
                    sequence.history,
                )
            )
        return found + [_root_alone(other, drafted[-1].draft) for other in sequences[len(found) :]]

    def learn(self, planned: PlannedTrees, outcomes: Many[Outcome | None]) -> None:
        """`outcomes`: of the trees, None for those that teach nothing. To be called before the next trees of these
        sequences are built.

        Of a large round some sequences are enough, drawn anew each time: what a round teaches, and what that costs,
        need not grow with the load.
        """
        if planned.batch is None or not self._settings.learns_acceptance:
            return
        drafted = planned.drafted
        written: list[list[int]] = [[] for _ in outcomes]
        first = self._draw(len(drafted))
        for turn in range(first, first + min(len(drafted), _MOST_LEARNED)):
            place, sequence, draft, ranking, _ = drafted[turn % len(drafted)]
            outcome = outcomes[place]
            if outcome is not None:
                written[place] = tokens = [*outcome.token_ids.tolist(), outcome.bonus_token]
                self.tuner.observe(sequence.request.sampling, ranking, draft.token_ids, tokens)
        self._builder.learn(planned.batch, written)

    def forget(self, sequence: Sequence) -> None:
        """Of a sequence that has ended."""
        if self._histories is not None and sequence.history != NO_HISTORY:
            self._histories.close(sequence.history)
            sequence.history = NO_HISTORY

    def _tell_histories(self, sequences: list[Sequence]) -> None:
        if self._histories is None:
            return
        slots, untold = [], []
        for sequence in sequences:
            if sequence.history == NO_HISTORY:
                sequence.history, sequence.num_told = self._histories.open(), 0
            slots.append(sequence.history)
            untold.append(sequence.token_ids[sequence.num_told :])
            sequence.num_told = len(sequence.token_ids)
        self._histories.extend(slots, untold)
