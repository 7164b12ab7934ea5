"""Which nodes the trees of a round have, and what is learned from them. One for all targets of a router."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

from cluster.requests import LatencyClass, Strategy
from cluster.router.ranking import RankingTuner
from cluster.router.sequence import Sequence
from cluster.router.settings import RouterSettings
from dflash_core.contracts import DEFAULT_RANKING, Draft, DraftRanking, DraftTree
from dflash_core.trees.acceptance import AcceptanceModel, context_class
from dflash_core.trees.build import NO_HISTORY, UNLIMITED_WIDTH, NodeBudget, TreeBatch, TreeBuilder, TreeCandidates
from dflash_core.trees.histories import TokenHistories
from dflash_core.trees.structure import root_only

# With a fixed budget, a sequence whose drafts are good may take this many times its share from those whose are not.
_MOST_SHARES = 2
# What a token of a request counts against the others' when nodes are given out.
_WEIGHTS = {LatencyClass.INTERACTIVE: 2.0, LatencyClass.STANDARD: 1.0, LatencyClass.BATCH: 0.5}


@dataclass(frozen=True, slots=True)
class Drafted:
    """A sequence of a round that has a draft, and what the tree was built from."""

    sequence: Sequence
    draft: Draft
    ranking: DraftRanking


@dataclass(frozen=True, slots=True)
class PlannedTrees:
    """One tree per running sequence of a round, and what is needed to learn from their outcomes."""

    trees: list[DraftTree]
    drafted: tuple[Drafted, ...] = ()
    batch: TreeBatch | None = None  # of those drafted


def weight_of(sequence: Sequence) -> float:
    return _WEIGHTS[sequence.request.latency_class]


class TreePlanner:
    """Builds the trees of one round from the drafts at hand, all sequences together (ARCHITECTURE section 4)."""

    def __init__(self, settings: RouterSettings) -> None:
        self._settings = settings
        self.tuner = RankingTuner()
        self._histories = TokenHistories() if settings.learns_acceptance else None
        self._builder = TreeBuilder(AcceptanceModel(), self._histories)

    @property
    def acceptance(self) -> AcceptanceModel:
        return self._builder.model

    def most_nodes(self, sequence: Sequence) -> int:
        """The largest tree that it may get."""
        settings, own = self._settings, sequence.request.tree_budget
        if settings.strategy is Strategy.NONE or sequence.num_wanted <= 1:
            return 0
        if settings.tree_budget is None:
            return settings.max_tree_nodes if own is None else min(own, settings.max_tree_nodes)
        return settings.tree_budget * _MOST_SHARES if own is None else own

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

    def drafted(self, sequences: Many[Sequence]) -> tuple[Drafted, ...]:
        """Those that have a draft for their root and may use it."""
        found = []
        for sequence in sequences:
            draft = sequence.draft
            if draft is not None and draft.context_len == sequence.root_position and self.most_nodes(sequence) > 0:
                found.append(Drafted(sequence, draft, sequence.ranking))
        return tuple(found)

    def build(self, sequences: Many[Sequence], drafted: tuple[Drafted, ...], budget: NodeBudget) -> PlannedTrees:
        """One tree per sequence, with nodes for those drafted, as many as the budget says."""
        if not drafted:
            return PlannedTrees([root_only(sequence.token_ids[-1]) for sequence in sequences])
        self._tell_histories([entry.sequence for entry in drafted])
        batch = self._builder.build([self._candidates(entry) for entry in drafted], budget)
        trees = {id(entry.sequence): tree for entry, tree in zip(drafted, batch.trees, strict=True)}
        return PlannedTrees(
            [trees.get(id(sequence)) or root_only(sequence.token_ids[-1]) for sequence in sequences], drafted, batch
        )

    def _candidates(self, entry: Drafted) -> TreeCandidates:
        sequence, draft = entry.sequence, entry.draft
        most_nodes = self.most_nodes(sequence)
        return TreeCandidates(
            root_token=sequence.token_ids[-1],
            token_ids=draft.token_ids,
            scores=draft.scores,
            max_depth=min(sequence.num_wanted - 1, len(draft.token_ids)),
            max_nodes=most_nodes,
            min_nodes=min(self._settings.min_tree_nodes, most_nodes),
            max_width=1 if self._settings.strategy is Strategy.CHAIN else UNLIMITED_WIDTH,
            weight=weight_of(sequence),
            context_class=context_class(sequence.request.sampling, entry.ranking),
            history=sequence.history,
        )

    def learn(self, planned: PlannedTrees, written: Many[Many[int]]) -> None:
        """`written`: of each sequence drafted, what the target wrote after its root; nothing where it wrote nothing.

        To be called before the next trees of these sequences are built.
        """
        if planned.batch is None or not self._settings.learns_acceptance:
            return
        self._builder.learn(planned.batch, written)
        for entry, tokens in zip(planned.drafted, written, strict=True):
            if tokens:
                self.tuner.observe(entry.sequence.request.sampling, entry.ranking, entry.draft.token_ids, list(tokens))

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
        self._histories.extend(
            [sequence.history for sequence in sequences],
            [sequence.token_ids[sequence.num_told :] for sequence in sequences],
        )
        for sequence in sequences:
            sequence.num_told = len(sequence.token_ids)
