"""Learning: step by step against plain loops, and what it comes to where the truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dflash_core.contracts import DraftTree
from dflash_core.trees.acceptance import AcceptanceModel
from dflash_core.trees.build import NodeBudget, TreeBuilder
from dflash_core.trees.candidates import TreeCandidates
from dflash_core.trees.learning import FADING, LOG_SCALE, MOST_BIAS, MOST_SLOPE, STEP
from dflash_core.trees.scoring import MATCH_BIAS, MATCH_SLOPE, NONE_BIAS, NONE_SLOPE, RANK_BIAS, SLOPE
from tests.core.tree_examples import VOCAB, WINDOW, Case, cases
from tests.core.tree_search_oracle import slow_children, slow_match, token_paths


def slow_learn(case: Case, committed: list[list[int]], parameters: np.ndarray, squares: np.ndarray) -> None:
    """One observation after the other; a step per depth along their summed gradients."""
    for c, written, history in zip(case.candidates, committed, case.committed, strict=True):
        spine = 0
        for depth, truth in enumerate(written[: min(c.max_depth, len(c.token_ids)) if c.token_ids.size else 0], 1):
            tables, sums = parameters[c.context_class, spine], squares[c.context_class, spine]
            continuation, match_len = -1, 0
            if history is not None:
                continuation, match_len = slow_match([*history, *written[: depth - 1]], history, 2 * WINDOW)
            ids, scores, deep = c.token_ids[depth - 1].tolist(), c.scores[depth - 1].tolist(), depth - 1
            children, left, none = slow_children(tables, depth, ids, scores, continuation, match_len)
            total = math.fsum(child.weight for child in children) + none
            error_of_none = none / total - (truth not in [child.token for child in children])
            gradients = {
                (SLOPE, deep): 0.0,
                (NONE_SLOPE, deep): error_of_none * left * LOG_SCALE,
                (NONE_BIAS, deep): error_of_none,
            }
            for bucket in range(1 + max((child.rank_bucket for child in children), default=-1)):
                gradients[RANK_BIAS, bucket] = 0.0
            for child in children:
                error = child.weight / total - (child.token == truth)
                gradients[SLOPE, deep] += error * child.log_q * LOG_SCALE
                gradients[RANK_BIAS, child.rank_bucket] += error
                if child.match_len:
                    gradients[MATCH_BIAS, child.match_len - 2] = error
                    gradients[MATCH_SLOPE, child.match_len - 2] = error * child.log_q * LOG_SCALE
            for (kind, bucket), gradient in gradients.items():
                is_slope = kind in (SLOPE, NONE_SLOPE, MATCH_SLOPE)
                most, step = (MOST_SLOPE, STEP * LOG_SCALE) if is_slope else (MOST_BIAS, STEP)
                sums[kind, bucket] = sums[kind, bucket] * FADING + gradient**2
                moved = tables[kind, bucket] - step * gradient / math.sqrt(sums[kind, bucket] + 1.0)
                tables[kind, bucket] = np.clip(moved, -most, most)
            if not (children and children[0].rank == 0 and children[0].token == truth):
                spine = 1


@given(cases(), st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_step_is_that_of_plain_loops(case: Case, seed: int) -> None:
    rng = np.random.default_rng(seed)
    committed = [rng.integers(VOCAB, size=rng.integers(6)).tolist() for _ in case.candidates]
    for written, c in zip(committed, case.candidates, strict=True):
        for depth in range(min(len(written), len(c.token_ids)) if c.token_ids.size else 0):
            if rng.random() < 0.7:
                written[depth] = int(c.token_ids[depth, 0])
    parameters, squares = case.model.parameters.copy(), case.model.squares.copy()
    builder = TreeBuilder(case.model, case.histories)
    for _ in range(2):
        slow_learn(case, committed, parameters, squares)
        builder.learn(builder.build(case.candidates, NodeBudget.of(4)), committed)
        np.testing.assert_allclose(case.model.parameters, parameters, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(case.model.squares, squares, rtol=1e-9, atol=1e-9)


def test_a_new_model_says_what_the_drafter_says() -> None:
    probabilities = np.array([[0.9, 0.05, 0.01], [0.5, 0.3, 0.1]])
    c = TreeCandidates(0, np.arange(6, dtype=np.int32).reshape(2, 3), np.log(probabilities).astype(np.float32), 2, 100)
    batch = TreeBuilder(AcceptanceModel(), None).build([c], NodeBudget.of(100))
    assert batch.expected_tokens[0] == pytest.approx(1 + 0.96 + 0.96 * 0.9, abs=1e-5)


class Synthetic:
    """Sequences whose true probabilities are known: a depth's token does not depend on those before."""

    DEPTH, RANKS, SEQUENCES = 5, 12, 16

    def __init__(self, sharpness: float, seed: int) -> None:
        """Scores are the truth to the power of `sharpness`, normalised: 1 is exact, more is too sure of itself."""
        self.rng = np.random.default_rng(seed)
        self.sharpness = sharpness

    def draw(self) -> tuple[list[TreeCandidates], np.ndarray]:
        """Candidates, and the true probabilities `[sequences, depth, ranks]` of tokens 0 … ranks − 1 in every depth."""
        shape = (self.SEQUENCES, self.DEPTH, self.RANKS)
        logits = -np.sort(-2.0 * self.rng.normal(size=shape), axis=2)
        truth = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
        said = truth**self.sharpness / (truth**self.sharpness).sum(axis=2, keepdims=True)
        ids = np.tile(np.arange(self.RANKS, dtype=np.int32), (self.DEPTH, 1))
        return [TreeCandidates(0, ids, np.log(scores).astype(np.float32), self.DEPTH, 1000) for scores in said], truth

    def write(self, tree: DraftTree, truth: np.ndarray) -> list[int]:
        """What a target commits: the accepted path and the bonus token."""
        paths, written = set(token_paths(tree)), []
        for probabilities in truth:
            written.append(int(self.rng.choice(self.RANKS, p=probabilities)))
            if tuple(written) not in paths:
                break
        return written


def true_tokens(tree: DraftTree, truth: np.ndarray) -> float:
    return 1.0 + sum(math.prod(truth[depth, token] for depth, token in enumerate(path)) for path in token_paths(tree))


def run(synthetic: Synthetic, num_rounds: int, num_judged: int) -> tuple[float, float, float, float]:
    """Tokens per tree in the last rounds: said by a learned model, true; said by the drafter's scores, true."""
    learned, raw = TreeBuilder(AcceptanceModel(), None), TreeBuilder(AcceptanceModel(), None)
    budget = NodeBudget.of(8 * Synthetic.SEQUENCES)
    totals = np.zeros(4)
    for index in range(num_rounds):
        candidates, truth = synthetic.draw()
        batch = learned.build(candidates, budget)
        if index >= num_rounds - num_judged:
            for place, found in enumerate((batch, raw.build(candidates, budget))):
                totals[2 * place] += found.expected_tokens.sum()
                totals[2 * place + 1] += sum(map(true_tokens, found.trees, truth))
        learned.learn(batch, [synthetic.write(tree, t) for tree, t in zip(batch.trees, truth, strict=True)])
    said, true, raw_said, raw_true = totals / (num_judged * Synthetic.SEQUENCES)
    return said, true, raw_said, raw_true


@pytest.mark.parametrize("sharpness", [0.5, 2.0])
def test_it_learns_what_is_true_of_a_drafter_that_is_wrong_about_itself(sharpness: float) -> None:
    said, true, raw_said, raw_true = run(Synthetic(sharpness, seed=0), num_rounds=300, num_judged=100)
    assert said == pytest.approx(true, rel=0.04)
    assert abs(raw_said / raw_true - 1.0) > 0.15
    assert true > 0.995 * raw_true


def test_it_stays_neutral_where_the_drafter_is_right() -> None:
    said, true, raw_said, raw_true = run(Synthetic(1.0, seed=1), num_rounds=300, num_judged=250)
    assert raw_said == pytest.approx(raw_true, rel=1e-4)
    assert said == pytest.approx(true, rel=0.03)
    assert true > 0.99 * raw_true


def test_what_an_unsure_drafter_finds_is_foreseen_too() -> None:
    """Where it is unsure it keeps most for tokens that it does not list, though one that it lists is right."""
    rng, num_ranks, depth = np.random.default_rng(2), 12, 3
    ids = np.tile(np.arange(num_ranks, dtype=np.int32), (depth, 1))
    builder, budget = TreeBuilder(AcceptanceModel(), None), NodeBudget.of(16 * 8)
    said, came = np.zeros(2), np.zeros(2)
    for index in range(400):
        is_unsure = np.arange(16) % 2
        logits = (
            -np.sort(-rng.normal(size=(16, depth, num_ranks)), axis=2) * np.where(is_unsure, 0.5, 3.0)[:, None, None]
        )
        truth = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
        listed = np.where(is_unsure, 0.3, 0.99)[:, None, None]
        scores = np.log(truth * listed).astype(np.float32)
        batch = builder.build(
            [TreeCandidates(0, ids, of_depths, depth, 1000, min_nodes=8) for of_depths in scores], budget
        )
        committed = [[int(rng.choice(num_ranks, p=p)) for p in of_depths] for of_depths in truth]
        if index >= 200:
            said += [batch.expected_tokens[group::2].sum() for group in (0, 1)]
            came += [sum(map(true_tokens, batch.trees[group::2], truth[group::2])) for group in (0, 1)]
        builder.learn(batch, committed)
    np.testing.assert_allclose(said, came, rtol=0.05)
