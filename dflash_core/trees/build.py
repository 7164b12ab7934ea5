"""Building the best draft trees of a whole batch, and learning from what became of them.

builder = TreeBuilder(AcceptanceModel(), TokenHistories())
batch = builder.build(candidates, budget)       # batch.trees; batch.expected_tokens
…                                               # the target verifies them
builder.learn(batch, committed)                 # before the histories are told of the committed tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dflash_core.contracts import DraftTree, TokenIds
from dflash_core.trees.acceptance import NUM_CLASSES, AcceptanceModel
from dflash_core.trees.histories import TokenHistories
from dflash_core.trees.learning import learn
from dflash_core.trees.scoring import Histories, logits_of
from dflash_core.trees.search import FLOOR, MAX_WEIGHT, NEGLIGIBLE, Candidates, Found, find_nodes, take_nodes

UNLIMITED_WIDTH = 1 << 30
NO_HISTORY = -1

# The walk is begun a little below where the last one's nodes ended, and goes on by this factor where they do not do.
_LOWER = 0.5
_FIRST_THRESHOLD = 0.05


@dataclass(frozen=True, slots=True)
class TreeCandidates:
    """What one sequence brings to a round: its root, and the drafter's candidates per depth, best first.

    Scores are log-probabilities; one of −inf (or NaN) ends its depth's list.
    """

    root_token: int
    token_ids: TokenIds  # [depth, K], distinct within a depth; [0, 0] where there is no draft
    scores: npt.NDArray[np.float32]  # [depth, K]
    max_depth: int  # of a node; the root's is 0
    max_nodes: int  # without the root
    min_nodes: int = 0  # that it gets even where they do not pay, as far as there are candidates
    max_width: int = UNLIMITED_WIDTH  # children of a node; 1 makes the tree a chain
    weight: float = 1.0  # of its tokens against those of the others
    context_class: int = 0  # `acceptance.context_class`
    history: int = NO_HISTORY  # its slot in the histories


@dataclass(frozen=True, slots=True)
class NodeBudget:
    """What nodes cost. The batch gets the number of them that maximises expected tokens − rate · seconds."""

    seconds: npt.NDArray[np.float64]  # [most nodes + 1], of a round with so many; non-decreasing
    rate: float  # λ: tokens that a second is worth, weighted as the sequences are

    @classmethod
    def of(cls, num_nodes: int) -> NodeBudget:
        """Exactly so many, as far as there are candidates."""
        return cls(np.zeros(num_nodes + 1), 0.0)


@dataclass(frozen=True, slots=True)
class TreeBatch:
    """The trees of a round, in the order of the candidates."""

    trees: list[DraftTree]
    expected_tokens: npt.NDArray[np.float64]  # [sequences], the bonus token included
    packed: Candidates


class TreeBuilder:
    """One search over all sequences of a batch. `histories` None: nothing is known of how sequences went on."""

    def __init__(self, model: AcceptanceModel, histories: TokenHistories | None) -> None:
        self.model = model
        self.histories = histories
        self._threshold = _FIRST_THRESHOLD
        self._no_histories = Histories(
            np.zeros((0, 8), np.int32), np.zeros(0, np.int64), np.zeros((0, 8), np.int32), np.zeros((0, 16), np.int32)
        )
        self._warm_up()

    def build(self, candidates: Sequence[TreeCandidates], budget: NodeBudget) -> TreeBatch:
        """The nodes most likely to be accepted over all sequences, each tree in preorder, its likeliest child first.

        Among equally likely nodes the earlier sequence's go first. Every tree holds the parent of each of its nodes. A
        sequence that has reached its `max_nodes` leaves its share to the others.
        """
        packed = _pack(candidates)
        found, cutoff, num_equal = self._choose(packed, budget)
        token_ids, depths, ends, expected = take_nodes(packed.roots, packed.weights, found, cutoff, num_equal)
        starts = [0, *ends[:-1].tolist()] if len(ends) else []
        trees = [
            DraftTree(token_ids[start:end], depths[start:end]) for start, end in zip(starts, ends.tolist(), strict=True)
        ]
        return TreeBatch(trees, expected, packed)

    def _choose(self, packed: Candidates, budget: NodeBudget) -> tuple[Found, float, int]:
        """Nodes among which the best ones are, the key of the last of them, and how many with that key are taken."""
        most, costs = len(budget.seconds) - 1, budget.rate * budget.seconds
        capacity = 2 * most + 1024
        threshold = self._threshold
        while True:
            found = find_nodes(packed, self._arrays(), self.model.parameters, threshold, capacity)
            if len(found.ends) < len(packed.roots):
                threshold *= 4.0
                if threshold > 0.5:
                    capacity *= 2
                continue
            keys = np.sort(found.keys)[::-1]
            is_floor = keys >= FLOOR
            num_floor = min(int(is_floor.sum()), most)
            gains = np.zeros(len(keys) + 1)
            np.cumsum(keys - FLOOR * is_floor, out=gains[1:])
            num_found = min(len(keys), most)
            values = gains[num_floor : num_found + 1] - costs[num_floor : num_found + 1]
            num_taken = num_found - int(np.argmax(values[::-1]))  # the last of equals
            if found.is_complete or threshold < NEGLIGIBLE:
                break
            # Were all nodes below the threshold as likely as it, could more of them pay?
            further = np.arange(num_found + 1, most + 1)
            unseen = gains[num_found] + (further - num_found) * threshold - costs[num_found + 1 :]
            if unseen.max(initial=-np.inf) <= values.max():
                break
            threshold *= _LOWER * _LOWER
        cutoff = float(keys[num_taken - 1]) if num_taken else np.inf
        self._threshold = max(NEGLIGIBLE, _LOWER * min(cutoff, 1.0)) if num_taken else _FIRST_THRESHOLD
        num_equal = num_taken - int(np.count_nonzero(keys > cutoff))
        return found, cutoff, num_equal

    def learn(self, batch: TreeBatch, committed: Sequence[Sequence[int]]) -> None:
        """Learns from the tokens that the target wrote after each root; none for a sequence of which nothing came.

        The histories must be as they were when the batch was built.
        """
        starts = np.zeros(len(committed) + 1, np.int64)
        np.cumsum([len(tokens) for tokens in committed], out=starts[1:])
        flat = np.fromiter((token for tokens in committed for token in tokens), np.int32, count=int(starts[-1]))
        learn(batch.packed, self._arrays(), self.model.parameters, self.model.squares, flat, starts)

    def _arrays(self) -> Histories:
        held = self.histories
        return self._no_histories if held is None else Histories(held.tokens, held.lens, held.links, held.heads)

    def _warm_up(self) -> None:
        """Compiles (or loads from the cache) the kernels, so that the first round does not wait for them."""
        one = TreeCandidates(0, np.zeros((1, 1), np.int32), np.zeros((1, 1), np.float32), max_depth=1, max_nodes=1)
        untouched = TreeBatch([], np.zeros(0), _pack([one]))
        self.build([one], NodeBudget.of(1))
        learn(
            untouched.packed,
            self._no_histories,
            np.zeros_like(self.model.parameters),
            np.zeros_like(self.model.squares),
            np.zeros(1, np.int32),
            np.array([0, 1], np.int64),
        )
        if self.histories is not None:
            slot = self.histories.open()
            self.histories.extend([slot], [[0]])
            self.histories.close(slot)


def _pack(candidates: Sequence[TreeCandidates]) -> Candidates:
    num_ranks = [c.token_ids.shape[1] if c.token_ids.size else 0 for c in candidates]
    depths = [min(c.max_depth, len(c.token_ids)) if c.token_ids.size else 0 for c in candidates]
    for c in candidates:
        assert c.token_ids.shape == c.scores.shape, (c.token_ids.shape, c.scores.shape)
        assert 0.0 < c.weight <= MAX_WEIGHT, c.weight
        assert 0 <= c.context_class < NUM_CLASSES, c.context_class
    offsets = np.zeros(len(candidates), np.int64)
    np.cumsum([c.token_ids.size for c in candidates[:-1]], out=offsets[1:])
    ids = [np.ravel(c.token_ids) for c in candidates] or [np.zeros(0, np.int32)]
    scores = [np.ravel(c.scores) for c in candidates] or [np.zeros(0, np.float32)]
    return Candidates(
        roots=np.array([c.root_token for c in candidates], np.int32),
        token_ids=np.concatenate(ids).astype(np.int32, copy=False),
        logits=logits_of(np.concatenate(scores).astype(np.float32, copy=False)),
        offsets=offsets,
        num_ranks=np.array(num_ranks, np.int64),
        max_depths=np.array(depths, np.int64),
        min_nodes=np.array([c.min_nodes for c in candidates], np.int64),
        max_nodes=np.array([c.max_nodes for c in candidates], np.int64),
        max_widths=np.array([c.max_width for c in candidates], np.int64),
        weights=np.array([c.weight for c in candidates], np.float64),
        classes=np.array([c.context_class for c in candidates], np.int64),
        slots=np.array([c.history for c in candidates], np.int64),
    )
