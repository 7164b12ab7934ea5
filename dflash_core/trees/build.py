"""Building the best draft trees of a whole batch, and learning from what became of them.

builder = TreeBuilder(AcceptanceModel(), TokenHistories())
batch = builder.build(candidates, budget)       # batch.trees; batch.expected_tokens
…                                               # the target verifies them
builder.learn(batch, committed)                 # before the histories are told of the committed tokens
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise

import numpy as np
import numpy.typing as npt

from dflash_core.contracts import DraftTree, TokenIds
from dflash_core.trees.acceptance import AcceptanceModel
from dflash_core.trees.candidates import TreeCandidates, pack
from dflash_core.trees.histories import TokenHistories
from dflash_core.trees.learning import learn
from dflash_core.trees.matches import Histories
from dflash_core.trees.packed import MAX_WEIGHT, NEGLIGIBLE, Candidates, Found
from dflash_core.trees.search import find_nodes
from dflash_core.trees.selection import Selection, select_nodes, take_nodes
from dflash_core.trees.worth import Worth

_FIRST_THRESHOLD = 0.05
# A search is begun below where the nodes of the one before ended: by so many times as far as ends lie from one another.
_BELOW_LAST, _FIRST_CHANGE, _CHANGE_STEP = 2.5, 0.3, 0.1
# Where its nodes do not do it is repeated with a threshold lower by this factor, where they are too many higher.
_STEP = 4.0


@dataclass(frozen=True, slots=True)
class NodeBudget:
    """What nodes cost. The batch gets the number of them that maximises expected tokens − rate · seconds."""

    seconds: npt.NDArray[np.float64]  # [most nodes + 1], of a round with so many; non-decreasing, finite
    rate: float  # λ ≥ 0: tokens that a second is worth, weighted as the sequences are

    @classmethod
    def of(cls, num_nodes: int) -> NodeBudget:
        """Exactly so many, as far as there are candidates."""
        return cls(np.zeros(num_nodes + 1), 0.0)


@dataclass(frozen=True, slots=True)
class TreeBatch:
    """The trees of a round, in the order of the candidates, one after the other."""

    token_ids: TokenIds  # [rows]
    depths: npt.NDArray[np.int32]  # [rows]
    num_rows: list[int]  # [sequences], of each tree, its root included
    expected_tokens: npt.NDArray[np.float64]  # [sequences], the bonus token included
    packed: Candidates

    @property
    def trees(self) -> list[DraftTree]:
        """One by one."""
        ends = list(accumulate(self.num_rows, initial=0))
        return [DraftTree(self.token_ids[begin:end], self.depths[begin:end]) for begin, end in pairwise(ends)]


class TreeBuilder:
    """One search over all sequences of a batch.

    `histories` None: nothing is known of how sequences went on. `worth` None: tokens are worth the same everywhere;
    where the number of nodes is fixed they are so anyway.
    """

    def __init__(self, model: AcceptanceModel, histories: TokenHistories | None, worth: Worth | None = None) -> None:
        self.model = model
        self.histories = histories
        self._worth = worth
        self._no_histories = TokenHistories(window=8)
        self._last, self._change = _FIRST_THRESHOLD, _FIRST_CHANGE  # cutoff, and by how much its logarithm changes
        self._warm_up()

    def build(self, candidates: Sequence[TreeCandidates], budget: NodeBudget) -> TreeBatch:
        """The nodes most likely to be accepted over all sequences, each tree in preorder, its likeliest child first.

        Among equally likely nodes the earlier sequence's go first. Every tree holds the parent of each of its nodes. A
        sequence that has reached its `max_nodes` leaves its share to the others. A node whose weighted probability is
        less than `NEGLIGIBLE` is no candidate.
        """
        return self.build_packed(pack(candidates), budget)

    def build_packed(self, packed: Candidates, budget: NodeBudget) -> TreeBatch:
        """The same from columns."""
        if self._worth is not None and budget.rate > 0.0:
            packed = self._worth.weigh(packed)
        found, chosen = self._search(packed, budget.rate * budget.seconds)
        taken = take_nodes(packed.roots, packed.weights, found, chosen.cutoff, chosen.num_equal)
        return TreeBatch(taken.token_ids, taken.depths, taken.num_rows.tolist(), taken.expected, packed)

    def _search(self, packed: Candidates, costs: npt.NDArray[np.float64]) -> tuple[Found, Selection]:
        """Nodes among which all are that pay, and which of them do; both whatever the threshold was to begin with."""
        threshold, too_high = max(NEGLIGIBLE, self._last * math.exp(-_BELOW_LAST * self._change)), MAX_WEIGHT
        capacity = 2 * len(costs) + 1024
        while True:
            found = find_nodes(packed, self._arrays(), self.model.parameters, threshold, capacity)
            if len(found.ends) < len(packed.roots):
                # Too many, and too few above a higher threshold that was tried: then there must be room for them.
                if threshold * _STEP < too_high:
                    threshold *= _STEP
                else:
                    capacity *= 2
                continue
            chosen = select_nodes(found, costs, threshold)
            if chosen.is_certain or threshold <= NEGLIGIBLE:
                break
            too_high = threshold
            threshold = max(threshold / _STEP, NEGLIGIBLE)
        last = min(chosen.cutoff, 1.0) if chosen.num_taken else _FIRST_THRESHOLD
        self._change += _CHANGE_STEP * (abs(math.log(last / self._last)) - self._change)
        self._last = last
        return found, chosen

    def learn(self, batch: TreeBatch, committed: Sequence[Sequence[int]]) -> None:
        """Learns from the tokens that the target wrote after each root; none for a sequence of which nothing came.

        The histories must be as they were when the batch was built.
        """
        starts = np.array([*accumulate(map(len, committed), initial=0)], np.int64)
        flat = np.fromiter(chain.from_iterable(committed), np.int32, count=int(starts[-1]))
        learn(batch.packed, self._arrays(), self.model.parameters, self.model.squares, flat, starts)

    def _arrays(self) -> Histories:
        return (self._no_histories if self.histories is None else self.histories).arrays

    def _warm_up(self) -> None:
        """Compiles (or loads from the cache) the kernels, so that the first round does not wait for them."""
        one = TreeCandidates(0, np.zeros((1, 1), np.int32), np.zeros((1, 1), np.float32), max_depth=1, max_nodes=1)
        if self._worth is not None:
            Worth().weigh(pack([one]))
        batch = self.build([one], NodeBudget.of(1))
        learn(
            batch.packed,
            self._arrays(),
            np.zeros_like(self.model.parameters),
            np.zeros_like(self.model.squares),
            np.zeros(1, np.int32),
            np.array([0, 1], np.int64),
        )
        slot = self._no_histories.open()
        self._no_histories.extend([slot], [[0]])
        self._no_histories.close(slot)
        self._last, self._change = _FIRST_THRESHOLD, _FIRST_CHANGE
