"""How many nodes each sequence of a round gets, and which."""

from __future__ import annotations

from cluster.requests import Strategy
from cluster.router.sequence import Sequence
from cluster.router.settings import RouterSettings
from dflash_core.contracts import DraftTree
from dflash_core.trees.acceptance import AcceptanceModel
from dflash_core.trees.build import UNLIMITED_WIDTH, NodeBudget, TreeBuilder, TreeCandidates
from dflash_core.trees.structure import root_only

# A sequence whose drafts are good may take this many times its share of the pool from those whose drafts are not.
_MOST_SHARES = 2


class TreePlanner:
    """Builds the trees of one round from the drafts at hand, all sequences together (ARCHITECTURE section 4)."""

    def __init__(self, settings: RouterSettings) -> None:
        self._settings = settings
        self._builder = TreeBuilder(AcceptanceModel(), None)

    def budget(self, sequence: Sequence) -> int:
        """Nodes that this sequence adds to the pool of a round."""
        if self._settings.strategy is Strategy.NONE:
            return 0
        own = sequence.request.tree_budget
        return self._settings.tree_budget if own is None else own

    def wants_draft(self, sequence: Sequence) -> bool:
        """False where the next token is the last one, or speculation is off: a draft could add nothing."""
        return sequence.num_wanted > 1 and self.budget(sequence) > 0

    def build(self, sequences: list[Sequence], max_nodes: int) -> list[DraftTree]:
        """One tree per sequence, at most `max_nodes` nodes together, without counting roots."""
        trees: list[DraftTree | None] = [None] * len(sequences)
        candidates: list[TreeCandidates] = []
        homes: list[int] = []
        pool = 0
        for index, sequence in enumerate(sequences):
            draft = sequence.draft
            budget = self.budget(sequence)
            if draft is None or draft.context_len != sequence.root_position or budget == 0 or sequence.num_wanted <= 1:
                trees[index] = root_only(sequence.token_ids[-1])
                continue
            own_limit = sequence.request.tree_budget
            candidates.append(
                TreeCandidates(
                    root_token=sequence.token_ids[-1],
                    token_ids=draft.token_ids,
                    scores=draft.scores,
                    max_depth=min(sequence.num_wanted - 1, len(draft.token_ids)),
                    max_nodes=budget * _MOST_SHARES if own_limit is None else own_limit,
                    max_width=1 if self._settings.strategy is Strategy.CHAIN else UNLIMITED_WIDTH,
                )
            )
            homes.append(index)
            pool += budget
        if candidates:
            batch = self._builder.build(candidates, NodeBudget.of(min(pool, max_nodes)))
            for index, tree in zip(homes, batch.trees, strict=True):
                trees[index] = tree
        return [tree for tree in trees if tree is not None]
