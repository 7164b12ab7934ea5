"""What tokens are worth: more where drafters are less sure than usual, within bounds, and of no moment elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from dflash_core.trees.acceptance import AcceptanceModel
from dflash_core.trees.build import NodeBudget, TreeBuilder
from dflash_core.trees.candidates import TreeCandidates
from dflash_core.trees.packed import MAX_WEIGHT
from dflash_core.trees.worth import MOST_WORTH, Worth


def candidates(best: float, weight: float = 1.0, group: int = 0, depth: int = 3) -> TreeCandidates:
    """The best candidate of each depth has this probability, the other half of what is left."""
    scores = np.log([[best, (1.0 - best) / 2]] * depth).astype(np.float32)
    ids = np.arange(2 * depth, dtype=np.int32).reshape(depth, 2)
    return TreeCandidates(0, ids, scores, depth, 100, weight=weight, context_class=group)


def chain_tokens(best: float, depth: int = 3) -> float:
    return sum(best**level for level in range(depth + 1))


def weights(worth: Worth, batch: list[TreeCandidates]) -> list[float]:
    found = TreeBuilder(AcceptanceModel(), None, worth).build(batch, NodeBudget(np.zeros(1), 1.0))
    return found.packed.weights.tolist()


def test_a_token_is_worth_more_where_drafts_bring_less_than_usual() -> None:
    worth = Worth()
    for _ in range(2_000):
        weights(worth, [candidates(0.8), candidates(0.8, group=3)])
    usual, hard, easy, of_others = weights(
        worth, [candidates(0.8), candidates(0.4), candidates(0.95), candidates(0.2, group=1)]
    )
    assert usual == pytest.approx(1.0, abs=0.01)
    assert hard == pytest.approx((chain_tokens(0.8) / chain_tokens(0.4)) ** 0.5, rel=0.02)
    assert easy == pytest.approx((chain_tokens(0.8) / chain_tokens(0.95)) ** 0.5, rel=0.02)
    assert of_others == pytest.approx(1.0), "a kind of sampling of its own, of which this is the first draft"


def test_bounds_hold_and_a_root_alone_stays_as_it_is() -> None:
    worth = Worth()
    for _ in range(2_000):
        weights(worth, [candidates(0.99, depth=15)])
    alone = candidates(0.5)._replace(token_ids=np.empty((0, 2), np.int32), scores=np.empty((0, 2), np.float32))
    hard = candidates(1e-6, weight=0.25)
    assert weights(worth, [hard, alone, hard._replace(weight=8.0)]) == [0.25 * MOST_WORTH, 1.0, MAX_WEIGHT]


def test_a_fixed_number_of_nodes_goes_to_the_likeliest() -> None:
    batch = [candidates(0.9), candidates(0.3)]
    worth = Worth()
    for _ in range(100):
        weights(worth, batch)
    budget = NodeBudget.of(3)
    with_worth = TreeBuilder(AcceptanceModel(), None, worth).build(batch, budget)
    assert with_worth.num_rows == TreeBuilder(AcceptanceModel(), None).build(batch, budget).num_rows


def test_expected_tokens_are_tokens_still() -> None:
    worth = Worth()
    for _ in range(100):
        weights(worth, [candidates(0.9)])
    budget = NodeBudget(np.zeros(7), 1.0)
    hard = [candidates(0.3)]
    expected = TreeBuilder(AcceptanceModel(), None, worth).build(hard, budget).expected_tokens
    np.testing.assert_allclose(expected, TreeBuilder(AcceptanceModel(), None).build(hard, budget).expected_tokens)
