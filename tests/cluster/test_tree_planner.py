"""Trees of a round whose drafts came in several answers, and of sequences that have none."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.requests import GenerationRequest
from cluster.router.sequence import Sequence
from cluster.router.settings import RouterSettings
from cluster.router.tree_planner import TreePlanner
from dflash_core.contracts import Draft, DraftTree, PackedDrafts, SamplingParams, SequenceKey
from dflash_core.trees.acceptance import AcceptanceModel
from dflash_core.trees.build import NodeBudget, TreeBuilder
from dflash_core.trees.candidates import TreeCandidates
from dflash_core.trees.histories import TokenHistories
from tests.cluster.simulated_client import Client
from tests.core.tree_examples import distinct_ids, log_probabilities

MAX_TOKENS = (100, 3, 100, 100, 6)  # of the sequences: some want less than their drafts are deep


def sequence_of(number: int, rng: np.random.Generator) -> Sequence:
    token_ids = rng.integers(8, size=12).astype(np.int32)
    request = GenerationRequest(f"s{number}", token_ids, 12, MAX_TOKENS[number], SamplingParams())
    return Sequence(request, Client(), SequenceKey(f"s{number}", 1), 0.0, token_ids.tolist())


def draft_of(sequence: Sequence, depth: int, width: int, rng: np.random.Generator) -> Draft:
    ids, scores = distinct_ids(rng, depth, width, 8), log_probabilities(rng, depth, width)
    return Draft(sequence.key, sequence.root_position, ids, scores)


def same_trees(found: list[DraftTree], expected: list[DraftTree]) -> bool:
    return all(
        np.array_equal(mine.token_ids, theirs.token_ids) and np.array_equal(mine.depths, theirs.depths)
        for mine, theirs in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize(
    "answers",
    [[[(0, 5, 8), (1, 5, 8), (2, 5, 8), (3, 5, 8), (4, 5, 8)]], [[(4, 5, 8)], [(0, 3, 8), (2, 7, 4)]], [[(3, 2, 6)]]],
    ids=["one answer", "of two drafters", "most without"],
)
def test_trees_are_those_of_each_sequences_own_draft(answers: list[list[tuple[int, int, int]]]) -> None:
    """`answers`: of each drafter, the sequences with depth and width of their drafts."""
    rng = np.random.default_rng(1)
    sequences = [sequence_of(number, rng) for number in range(len(MAX_TOKENS))]
    drafts: dict[int, Draft] = {}
    for answer in answers:
        mine = {number: draft_of(sequences[number], depth, width, rng) for number, depth, width in answer}
        packed = PackedDrafts.of(list(mine.values()))
        for place, number in enumerate(mine):
            sequences[number].drafts, sequences[number].draft_place = packed, place
        drafts |= mine
    histories = TokenHistories()
    candidates = []
    for number, sequence in enumerate(sequences):
        slot = histories.open()
        histories.extend([slot], [sequence.token_ids])
        draft, root = drafts.get(number), sequence.token_ids[-1]
        if draft is None:
            nothing = np.empty((0, 0), np.int32)
            candidates.append(TreeCandidates(root, nothing, nothing.astype(np.float32), 0, 0))
        else:
            wanted = sequence.num_wanted - 1
            candidates.append(TreeCandidates(root, draft.token_ids, draft.scores, wanted, 40, history=slot))
    budget = NodeBudget.of(30)
    expected = TreeBuilder(AcceptanceModel(), histories).build(candidates, budget)

    planner = TreePlanner(RouterSettings(max_tree_nodes=40))
    drafted = planner.drafted(sequences)
    planned = planner.build(sequences, drafted, budget)
    assert drafted.places == sorted(drafts)
    assert planned.batch is not None
    assert same_trees(planned.batch.trees, expected.trees)
    assert planned.batch.expected_tokens == pytest.approx(expected.expected_tokens)
    assert planned.num_nodes == 30 or len(drafts) == 1
