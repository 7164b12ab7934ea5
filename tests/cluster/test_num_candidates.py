"""How many candidates of a depth a router asks for, and that drafters send the best of them."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.router.instant import DEPTH, NUM_CANDIDATES, InstantDrafter
from cluster.router.settings import RouterSettings
from cluster.router.tree_planner import TreePlanner
from cluster.transports.runner_protocols import run_draft_request
from dflash_core.contracts import DraftBlock, DraftRequest, SamplingParams, SequenceKey


@pytest.mark.parametrize("asked", [0, 1, 5, NUM_CANDIDATES, 2 * NUM_CANDIDATES])
def test_a_drafter_sends_the_best_of_each_depth(asked: int) -> None:
    runner = InstantDrafter()
    blocks = tuple(DraftBlock(SequenceKey(f"s{i}", 1), 1, 8, SamplingParams()) for i in range(3))
    everything = runner.draft(blocks)
    result = run_draft_request(runner, DraftRequest(1, blocks=blocks, num_candidates=asked))
    kept = min(asked or NUM_CANDIDATES, NUM_CANDIDATES)
    for draft, whole in zip(result.drafts, everything, strict=True):
        assert draft.token_ids.shape == draft.scores.shape == (DEPTH, kept)
        np.testing.assert_array_equal(draft.token_ids, whole.token_ids[:, :kept])
        np.testing.assert_array_equal(draft.scores, whole.scores[:, :kept])
        assert draft[:2] + draft[4:] == whole[:2] + whole[4:]


def test_larger_trees_have_more_candidates_to_choose_from() -> None:
    asked = [TreePlanner(RouterSettings(tree_budget=nodes)).num_candidates for nodes in (1, 4, 16, 64)]
    assert asked == [8, 8, 12, 24]
