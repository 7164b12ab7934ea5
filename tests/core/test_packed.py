"""Columns read as what they were made of, whole and in part."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dflash_core.contracts import (
    Draft,
    DraftBlock,
    DraftRanking,
    Outcome,
    OutcomeStatus,
    PackedDraftBlocks,
    PackedDrafts,
    PackedOutcomes,
    SamplingParams,
    SequenceKey,
)

KEYS = [SequenceKey(f"s{number}", number) for number in range(5)]
BLOCKS = [
    DraftBlock(key, 7 + key.attempt, 40, SamplingParams(seed=key.attempt), DraftRanking(key.attempt > 2))
    for key in KEYS
]
OUTCOMES = [
    Outcome(KEYS[0], OutcomeStatus.OK, np.array([], np.int32), -1, 16, num_hit_tokens=8),
    Outcome(KEYS[1], OutcomeStatus.OK, np.array([4, 5, 6], np.int32), 7, 19),
    Outcome(KEYS[2], OutcomeStatus.MISMATCH, np.array([], np.int32), -1, 3, "it stands elsewhere"),
    Outcome(KEYS[3], OutcomeStatus.OK, np.array([9], np.int32), 2, 30),
]


def draft(number: int, depth: int, width: int, **changes: Any) -> Draft:
    token_ids = 100 * number + np.arange(depth * width, dtype=np.int32).reshape(depth, width)
    return Draft(KEYS[number], 12, token_ids, -token_ids.astype(np.float32), **changes)


DRAFTS = [draft(0, 3, 4), draft(1, 0, 4, missing_from=5), draft(2, 2, 4), draft(3, 0, 4, error="lost"), draft(4, 1, 4)]
UNEVEN = [draft(0, 3, 4), draft(1, 2, 1), draft(2, 0, 0, error="lost")]


def assert_same(found: Any, expected: Any) -> None:
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        for ours, other in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(ours, other)
            assert np.shape(ours) == np.shape(other)


@pytest.mark.parametrize(
    ("packed", "items"),
    [(PackedDraftBlocks, BLOCKS), (PackedOutcomes, OUTCOMES), (PackedDrafts, DRAFTS), (PackedDrafts, UNEVEN)],
)
def test_columns_read_as_what_they_were_made_of(packed: Any, items: list[Any]) -> None:
    columns = packed.of(items)
    assert packed.of(columns) is columns
    assert_same(columns, items)
    assert_same([columns[place] for place in range(-len(items), len(items))], items + items)
    assert_same(columns[1:], items[1:])
    assert_same(packed.of([]), [])
    with pytest.raises(IndexError):
        columns[len(items)]


@pytest.mark.parametrize("num_outcomes", range(len(OUTCOMES) + 1))
def test_outcomes_after_the_first(num_outcomes: int) -> None:
    assert_same(PackedOutcomes.of(OUTCOMES).after(num_outcomes), OUTCOMES[num_outcomes:])


@pytest.mark.parametrize("drafts", [DRAFTS, UNEVEN, DRAFTS[1:2]])
@pytest.mark.parametrize("num_candidates", [1, 3, 4, 9])
def test_the_best_of_each_depth(drafts: list[Draft], num_candidates: int) -> None:
    best = PackedDrafts.of(drafts).best(num_candidates)
    for mine, whole in zip(best, drafts, strict=True):
        assert len(mine.token_ids) == len(mine.scores) == len(whole.token_ids)
        if len(whole.token_ids):
            np.testing.assert_array_equal(mine.token_ids, whole.token_ids[:, :num_candidates])
            np.testing.assert_array_equal(mine.scores, whole.scores[:, :num_candidates])
        assert (mine.key, mine.context_len, mine[4:]) == (whole.key, whole.context_len, whole[4:])


def test_answers_joined() -> None:
    joined = PackedDrafts.joined([PackedDrafts.of(DRAFTS), PackedDrafts.of(UNEVEN), PackedDrafts.of(DRAFTS[1:3])])
    everything = [*DRAFTS, *UNEVEN, *DRAFTS[1:3]]
    assert_same(joined, everything)
    for place, one in enumerate(everything):
        np.testing.assert_array_equal(joined.token_ids_of(place), one.token_ids)
