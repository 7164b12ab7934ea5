"""Building trees against exhaustive search over every possible node."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dflash_core.trees.acceptance import AcceptanceModel
from dflash_core.trees.build import NodeBudget, TreeBatch, TreeBuilder
from dflash_core.trees.candidates import TreeCandidates
from dflash_core.trees.histories import TokenHistories
from dflash_core.trees.scoring import MATCH_BIAS
from dflash_core.trees.structure import check_tree
from tests.core.tree_examples import VOCAB, WINDOW, Case, budgets, cases, distinct_ids, log_probabilities
from tests.core.tree_search_oracle import (
    Node,
    best_value,
    exhaustive_choice,
    possible_nodes,
    token_paths,
    value_of,
)

SLOW = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def neutral(histories: TokenHistories | None = None) -> TreeBuilder:
    return TreeBuilder(AcceptanceModel(), histories)


def all_nodes(case: Case) -> list[list[Node]]:
    return [
        possible_nodes(sequence, c, case.model, tokens, 2 * WINDOW)
        for sequence, (c, tokens) in enumerate(zip(case.candidates, case.committed, strict=True))
    ]


def check_sound(batch: TreeBatch, case: Case) -> None:
    for tree, c in zip(batch.trees, case.candidates, strict=True):
        check_tree(tree, vocab_size=VOCAB, max_rows=c.max_nodes + 1, max_depth=c.max_depth)
        assert tree.token_ids.dtype == tree.depths.dtype == np.int32
        assert tree.token_ids[0] == c.root_token


def check_choice(batch: TreeBatch, chosen: list[Node]) -> None:
    """Nodes, their order in each tree, and what is expected of them."""
    for sequence, tree in enumerate(batch.trees):
        own = sorted((node for node in chosen if node.sequence == sequence), key=lambda node: node.order)
        assert token_paths(tree) == [node.path for node in own]
        weight = batch.packed.weights[sequence]
        assert batch.expected_tokens[sequence] == pytest.approx(1.0 + sum(node.key for node in own) / weight, abs=1e-9)


@given(cases(), st.integers(0, 60))
@SLOW
def test_trees_hold_the_best_nodes_of_the_whole_batch(case: Case, num_nodes: int) -> None:
    batch = TreeBuilder(case.model, case.histories).build(case.candidates, NodeBudget.of(num_nodes))
    check_sound(batch, case)
    check_choice(batch, exhaustive_choice(all_nodes(case), case.candidates, num_nodes))


@given(cases(), budgets())
@SLOW
def test_no_other_number_of_nodes_would_pay_more(case: Case, budget: NodeBudget) -> None:
    batch = TreeBuilder(case.model, case.histories).build(case.candidates, budget)
    check_sound(batch, case)
    chosen = exhaustive_choice(all_nodes(case), case.candidates, len(budget.seconds) - 1)
    num_taken = sum(tree.num_nodes for tree in batch.trees)
    check_choice(batch, chosen[:num_taken])
    assert value_of(chosen[:num_taken], budget) == pytest.approx(best_value(chosen, budget), abs=1e-9)


@given(cases(), cases(), budgets(), budgets())
@SLOW
def test_batches_before_change_nothing(before: Case, case: Case, budget_before: NodeBudget, budget: NodeBudget) -> None:
    builder = TreeBuilder(case.model, case.histories)
    fresh = builder.build(case.candidates, budget)
    builder.histories = before.histories
    builder.build(before.candidates, budget_before)
    builder.histories = case.histories
    again = builder.build(case.candidates, budget)
    for one, other in zip(fresh.trees, again.trees, strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        assert one.depths.tolist() == other.depths.tolist()
    assert fresh.expected_tokens.tolist() == again.expected_tokens.tolist()


@pytest.mark.parametrize("num_nodes", [1, 8, 700, 4096])
@pytest.mark.parametrize("peak", [0.99999, 0.6, 1 / 64])
def test_a_search_ends_where_thresholds_find_nothing_or_everything(num_nodes: int, peak: float) -> None:
    """All candidates alike: between one threshold and the next lie thousands of nodes or none."""
    scores = np.full((3, 64), np.log((1.0 - peak) / 63), np.float32)
    scores[:, 0] = np.log(peak)
    ids = np.arange(192, dtype=np.int32).reshape(3, 64)
    batch = [TreeCandidates(0, ids, scores, max_depth=3, max_nodes=4096, min_nodes=m) for m in [0, 0, 5] * 8]
    trees = neutral().build(batch, NodeBudget.of(num_nodes)).trees
    assert sum(tree.num_nodes for tree in trees) == num_nodes


def test_the_greedy_spine_comes_first() -> None:
    rng = np.random.default_rng(0)
    c = TreeCandidates(7, distinct_ids(rng, 7, 16), log_probabilities(rng, 7, 16), max_depth=7, max_nodes=64)
    (tree,) = neutral().build([c], NodeBudget.of(64)).trees
    assert tree.num_nodes == 64
    spine = int(np.flatnonzero(np.diff(tree.depths) != 1)[0])
    assert spine >= 1
    assert tree.token_ids[: spine + 1].tolist() == [7, *c.token_ids[:spine, 0].tolist()]


def test_width_one_is_a_chain_of_the_first_candidates() -> None:
    rng = np.random.default_rng(1)
    c = TreeCandidates(7, distinct_ids(rng, 7, 8), log_probabilities(rng, 7, 8), max_depth=5, max_nodes=64, max_width=1)
    (tree,) = neutral().build([c], NodeBudget.of(64)).trees
    assert tree.depths.tolist() == [0, 1, 2, 3, 4, 5]
    assert tree.token_ids.tolist() == [7, *c.token_ids[:5, 0].tolist()]


def test_the_budget_goes_where_the_probability_is() -> None:
    """A sure sequence gets its whole chain before a doubtful one gets its second node; max_nodes frees the rest."""
    ids = np.arange(12, dtype=np.int32).reshape(4, 3)
    sure = np.log(np.array([[0.98, 0.01, 0.005]] * 4, dtype=np.float32))
    doubtful = np.log(np.array([[0.4, 0.3, 0.2]] * 4, dtype=np.float32))

    def sizes(sure_max_nodes: int, doubtful_weight: float = 1.0, sure_min_nodes: int = 0) -> list[int]:
        batch = [
            TreeCandidates(0, ids, doubtful, 4, 100, weight=doubtful_weight),
            TreeCandidates(1, ids, sure, 4, sure_max_nodes, min_nodes=sure_min_nodes),
        ]
        return [tree.num_nodes for tree in neutral().build(batch, NodeBudget.of(5)).trees]

    assert sizes(100) == [1, 4]
    assert sizes(2) == [3, 2]
    assert sizes(100, doubtful_weight=8.0) == [4, 1]
    assert sizes(100, doubtful_weight=8.0, sure_min_nodes=2) == [3, 2]


def test_nodes_that_fill_a_padded_size_are_free() -> None:
    ids = np.arange(16, dtype=np.int32).reshape(4, 4)
    c = TreeCandidates(0, ids, np.log(np.full((4, 4), 0.2, np.float32)), 4, 100)
    steps = np.ceil(np.arange(33) / 8)
    (tree,) = neutral().build([c], NodeBudget(steps, rate=0.9)).trees
    assert tree.num_nodes == 8, "0.8 tokens at depth 1 and 0.16 at depth 2 are worth one step, 0.32 more are not"
    (tree,) = neutral().build([c], NodeBudget(steps, rate=1.0)).trees
    assert tree.num_nodes == 0


def test_a_sequence_goes_on_as_it_did_before() -> None:
    histories = TokenHistories()
    slot = histories.open()
    histories.extend([slot], [[5, 6, 7, 8, 5, 6]])
    model = AcceptanceModel()
    model.parameters[:, :, MATCH_BIAS, 0] = 20.0  # the continuation of a match of two tokens is all but sure
    ids, scores = np.array([[9], [9]], np.int32), np.log(np.full((2, 1), 0.5, np.float32))
    c = TreeCandidates(6, ids, scores, max_depth=2, max_nodes=8, history=slot)
    (tree,) = TreeBuilder(model, histories).build([c], NodeBudget.of(1)).trees
    assert tree.token_ids.tolist() == [6, 7], "7 followed 5, 6 before; the drafter does not know it"


def test_a_match_as_likely_as_the_last_candidate_comes_before_it_whatever_the_rounding() -> None:
    """Before anything is learned they are equal, by exponentials that are computed in two ways."""
    histories = TokenHistories(window=WINDOW)
    slot = histories.open()
    histories.extend([slot], [[1, 2, 9, 1, 2]])
    builder, ids = neutral(histories), np.array([[5, 6]], np.int32)
    for likelihood in np.linspace(0.01, 0.4, 60):
        scores = np.log(np.array([[0.5, likelihood]], np.float32))
        c = TreeCandidates(2, ids, scores, max_depth=1, max_nodes=2, history=slot)
        (tree,) = builder.build([c], NodeBudget.of(2)).trees
        assert tree.token_ids.tolist() == [2, 5, 9], likelihood


def test_a_root_that_may_have_no_children_has_none_whatever_was_searched_before_it() -> None:
    histories, model = TokenHistories(), AcceptanceModel()
    slots = [histories.open(), histories.open()]
    histories.extend(slots, [[5, 6, 7, 8, 5, 6]] * 2)
    model.parameters[:, :, MATCH_BIAS, 0] = -4.0  # the first one's match is left for a lower threshold
    ids, scores = np.array([[9]], np.int32), np.log(np.full((1, 1), 0.98, np.float32))
    first = TreeCandidates(6, ids, scores, max_depth=1, max_nodes=8, history=slots[0])
    second = first._replace(max_width=0, weight=8.0, history=slots[1])
    batch = TreeBuilder(model, histories).build([first, second], NodeBudget.of(2))
    assert [tree.token_ids.tolist() for tree in batch.trees] == [[6, 9, 7], [6]]


def test_nothing_to_draft_leaves_the_roots() -> None:
    empty = TreeCandidates(5, np.zeros((0, 0), np.int32), np.zeros((0, 0), np.float32), max_depth=7, max_nodes=8)
    builder = neutral()
    assert builder.build([], NodeBudget.of(10)).trees == []
    assert [tree.token_ids.tolist() for tree in builder.build([empty, empty], NodeBudget.of(10)).trees] == [[5], [5]]
    builder.learn(builder.build([empty], NodeBudget.of(1)), [[1, 2]])
    builder.learn(builder.build([], NodeBudget.of(1)), [])


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_score_that_says_nothing_ends_the_list(bad: float) -> None:
    scores = np.array([[-0.5, bad, -0.6]], dtype=np.float32)
    c = TreeCandidates(5, np.array([[1, 2, 3]], dtype=np.int32), scores, 1, 8)
    (tree,) = neutral().build([c], NodeBudget.of(8)).trees
    assert tree.token_ids.tolist() == [5, 1]


def test_a_full_batch_keeps_budget_and_soundness() -> None:
    rng = np.random.default_rng(2)
    batch = [
        TreeCandidates(
            s, distinct_ids(rng, 15, 64), log_probabilities(rng, 15, 50)[:, [*range(50), *[49] * 14]], 15, 64
        )
        for s in range(64)
    ]
    trees = neutral().build(batch, NodeBudget.of(64 * 32)).trees
    assert sum(tree.num_nodes for tree in trees) == 64 * 32
    for tree in trees:
        check_tree(tree, vocab_size=100, max_rows=65, max_depth=15)


def test_building_needs_no_torch() -> None:
    code = (
        "import sys; import dflash_core.trees.structure, dflash_core.trees.walk, dflash_core.sampling.noise; "
        "from dflash_core.trees.acceptance import AcceptanceModel; from dflash_core.trees.build import TreeBuilder; "
        "TreeBuilder(AcceptanceModel(), None); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
