"""What is wrong with one sequence's rows is that sequence's outcome; the others of the round go on."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

from dflash_core.contracts import DraftTree, OutcomeStatus, Prefill, SequenceKey, TreeRows
from dflash_core.trees.structure import root_only
from tests.core.target_models import (
    VOCAB_SIZE,
    Subject,
    decode_plainly,
    make_subject,
    ok,
    prefill_of,
    random_prompt,
    run,
)

GOOD, BAD = SequenceKey("good", 2), SequenceKey("bad", 2)
PROMPT = random_prompt(1, 9)


@pytest.fixture
def subject() -> Subject:
    """Both sequences stand at position 9 with a root."""
    subject = make_subject()
    run(subject.runner, prefills=(prefill_of(GOOD, PROMPT), prefill_of(BAD, PROMPT)))
    return subject


def tree_of(token_ids: list[int], depths: list[int]) -> DraftTree:
    return DraftTree(np.array(token_ids, np.int32), np.array(depths, np.int32))


def bad_tree(key: SequenceKey, position: int, token_ids: list[int], depths: list[int]) -> Callable[[int], TreeRows]:
    """-1 among the token ids stands for the root that the target expects."""
    return lambda root: TreeRows(key, position, tree_of([root if t == -1 else t for t in token_ids], depths))


UNKNOWN, STALE = OutcomeStatus.UNKNOWN_SEQUENCE, OutcomeStatus.STALE_ATTEMPT
MISMATCH, INVALID = OutcomeStatus.MISMATCH, OutcomeStatus.INVALID


@pytest.mark.parametrize(
    ("make_tree", "status", "message"),
    [
        (bad_tree(SequenceKey("nobody", 2), 9, [-1], [0]), UNKNOWN, "not here"),
        (bad_tree(SequenceKey("bad", 3), 9, [-1], [0]), UNKNOWN, "only attempt 2"),
        (bad_tree(SequenceKey("bad", 1), 9, [-1], [0]), STALE, "replaced by 2"),
        (bad_tree(BAD, 8, [-1], [0]), MISMATCH, "at 8, .* at 9"),
        (bad_tree(BAD, 9, [VOCAB_SIZE - 1], [0]), MISMATCH, f"root is {VOCAB_SIZE - 1}"),
        (bad_tree(BAD, 9, [-1, 5, 6], [0, 1, 3]), INVALID, "depth 3 after depth 1"),
        (bad_tree(BAD, 9, [-1, 5, 5], [0, 1, 1]), INVALID, "token 5 of an earlier child"),
        (bad_tree(BAD, 9, [-1, VOCAB_SIZE], [0, 1]), INVALID, str(VOCAB_SIZE)),
        (bad_tree(BAD, 9, [], []), INVALID, "rows"),
        (bad_tree(BAD, 9, [-1] * 120, list(range(120))), INVALID, "118 deep, got depth 119"),
        (bad_tree(BAD, 9, [-1] + [5] * 128, list(range(129))), INVALID, "max_tree_rows is 128"),
        (bad_tree(GOOD, 9, [-1], [0]), MISMATCH, "appears twice"),
    ],
)
def test_a_bad_tree(
    subject: Subject, make_tree: Callable[[int], TreeRows], status: OutcomeStatus, message: str
) -> None:
    runner = subject.runner
    expected = decode_plainly(runner, PROMPT, 3)
    before = runner.free_blocks
    bad = make_tree(expected[0])
    trees = (TreeRows(GOOD, 9, root_only(expected[0])), bad)
    good, refused = run(runner, trees=trees).result.outcomes
    assert ok(good).bonus_token == expected[1]
    assert (refused.key, refused.status, refused.bonus_token) == (bad.key, status, -1)
    assert len(refused.token_ids) == 0
    assert refused.cached_len == (9 if bad.key in (GOOD, BAD) else 0)
    assert re.search(message, refused.message), refused.message
    assert runner.free_blocks == before

    # The refused sequence itself is as it was.
    outcome = run(runner, trees=(TreeRows(BAD, 9, root_only(expected[0])),)).result.outcomes[0]
    assert ok(outcome).bonus_token == expected[1]


@pytest.mark.parametrize(
    ("prefill", "status", "message"),
    [
        (prefill_of(SequenceKey("new", 0), PROMPT, 4), UNKNOWN, "not here"),
        (prefill_of(SequenceKey("bad", 1), PROMPT), STALE, "replaced by 2"),
        (prefill_of(SequenceKey("bad", 3), PROMPT, 4), UNKNOWN, "only attempt 2"),
        (prefill_of(BAD, PROMPT), MISMATCH, "open already, with 9"),
        (prefill_of(BAD, random_prompt(0, 12), 9), MISMATCH, "its prompt is done"),
        (prefill_of(SequenceKey("new", 0), random_prompt(0, 0)), INVALID, "0 tokens"),
        (prefill_of(SequenceKey("new", 0), np.array([VOCAB_SIZE], np.int32)), INVALID, str(VOCAB_SIZE)),
        (prefill_of(SequenceKey("new", 0), np.array([-1], np.int32)), INVALID, "-1"),
        (prefill_of(SequenceKey("new", 0), random_prompt(0, 129)), INVALID, "129 tokens .* 128"),
        (prefill_of(SequenceKey("new", 0), random_prompt(0, 256)), INVALID, "max_rows is 256"),
    ],
)
def test_a_bad_prefill(subject: Subject, prefill: Prefill, status: OutcomeStatus, message: str) -> None:
    runner = subject.runner
    expected = decode_plainly(runner, PROMPT, 3)
    before = (runner.free_blocks, runner.num_sequences)
    good_prefill = prefill_of(SequenceKey("third", 0), PROMPT)
    tree = TreeRows(GOOD, 9, root_only(expected[0]))
    third, refused, good = run(runner, prefills=(good_prefill, prefill), trees=(tree,)).result.outcomes
    assert (ok(third).bonus_token, ok(good).bonus_token) == (expected[0], expected[1])
    assert (refused.key, refused.status, refused.bonus_token) == (prefill.key, status, -1)
    assert re.search(message, refused.message), refused.message
    run(runner, releases=(good_prefill.key,))
    assert (runner.free_blocks, runner.num_sequences) == before


def test_a_prompt_without_blocks_is_refused_and_fits_after_a_release() -> None:
    runner = make_subject(num_blocks=32).runner
    first, second = SequenceKey("first", 0), SequenceKey("second", 0)
    run(runner, prefills=(prefill_of(first, random_prompt(0, 100)),))
    chunk = prefill_of(second, random_prompt(1, 40))
    result = run(runner, prefills=(chunk,)).result
    refused = result.outcomes[0]
    assert (refused.status, result.preempted, runner.num_sequences) == (OutcomeStatus.OUT_OF_BLOCKS, (second,), 1)
    assert refused.message == "10 KV blocks are needed for 40 tokens, 7 are free"
    ok(run(runner, prefills=(chunk,), releases=(first,)).result.outcomes[0])
    assert runner.free_blocks == 22
    runner.release_all()
    assert (runner.free_blocks, runner.num_sequences) == (32, 0)


def test_releases_know_attempts() -> None:
    runner = make_subject().runner
    run(runner, prefills=(prefill_of(SequenceKey("s", 5), PROMPT),))
    run(runner, releases=(SequenceKey("s", 4), SequenceKey("nobody", 0)))
    assert runner.num_sequences == 1
    run(runner, releases=(SequenceKey("s", 6),))
    assert (runner.num_sequences, runner.free_blocks) == (0, 64)


def test_logits_that_are_not_numbers_concern_their_sequence_alone() -> None:
    subject = make_subject()
    runner, prompt = subject.runner, np.array([3, 4, 5], np.int32)
    expected = decode_plainly(runner, prompt, 2)
    poison = next(t for t in range(VOCAB_SIZE) if t not in {*prompt.tolist(), *expected})
    with torch.no_grad():
        runner._model.model.get_input_embeddings().weight[poison] = float("nan")
    prefills = (prefill_of(GOOD, prompt), prefill_of(BAD, np.array([6, poison, 7], np.int32)))
    good, bad = run(runner, prefills=prefills).result.outcomes
    assert ok(good).bonus_token == expected[0]
    assert (bad.status, bad.bonus_token) == (INVALID, -1)
    assert "position 3" in bad.message
    again = prefill_of(SequenceKey("bad", 3), np.array([6, poison, 7], np.int32))
    tree = TreeRows(GOOD, 3, root_only(expected[0]))
    bad, good = run(runner, prefills=(again,), trees=(tree,)).result.outcomes
    assert (ok(good).bonus_token, bad.status) == (expected[1], INVALID)
