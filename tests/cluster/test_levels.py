"""What drafts bring, learned sequence by sequence and kind by kind."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.requests import GenerationRequest
from cluster.router.levels import FIRST_LEVEL, DraftLevels
from cluster.router.sequence import Sequence
from dflash_core.contracts import SamplingParams, SequenceKey
from tests.cluster.simulated_client import Client


def _sequence(temperature: float = 0.0, max_tokens: int = 100) -> Sequence:
    token_ids = np.array([5, 6, 7], np.int32)
    request = GenerationRequest("a", token_ids, 3, max_tokens, SamplingParams(temperature=temperature))
    return Sequence(request, Client(), SequenceKey("a", 1), 0.0, token_ids.tolist())


def _teach(levels: DraftLevels, level: float, temperature: float = 0.0, num_sequences: int = 50) -> None:
    for _ in range(num_sequences):
        sequence = _sequence(temperature)
        for _ in range(4):
            levels.observe([sequence], [level], is_paying=True)


def _level(levels: DraftLevels, sequence: Sequence) -> float:
    return float(levels.of_next_drafts([sequence])[0])


def test_a_new_sequence_begins_as_others_that_are_sampled_alike() -> None:
    levels = DraftLevels()
    assert _level(levels, _sequence()) == FIRST_LEVEL
    _teach(levels, 5.0, temperature=0.0)
    _teach(levels, 1.0, temperature=1.0)
    assert _level(levels, _sequence(0.0)) == pytest.approx(5.0, abs=0.1)
    assert _level(levels, _sequence(1.0)) == pytest.approx(1.0, abs=0.1)


def test_one_bad_draft_says_little_and_many_say_all() -> None:
    levels = DraftLevels()
    _teach(levels, 5.0)
    sequence = _sequence()
    levels.observe([sequence], [0.0], is_paying=True)
    assert 4.0 < _level(levels, sequence) < 5.0
    for _ in range(60):
        levels.observe([sequence], [0.0], is_paying=True)
    mean = _level(levels, _sequence())
    assert _level(levels, sequence) == pytest.approx(0.2 * mean, abs=0.3)


def test_no_more_than_a_request_still_wants() -> None:
    sequences = [_sequence(max_tokens=2), _sequence()]
    assert DraftLevels().of_next_drafts(sequences).tolist() == [1.0, FIRST_LEVEL]
    assert DraftLevels().of_lasting_drafts(sequences).tolist() == [FIRST_LEVEL, FIRST_LEVEL]


def test_a_broken_promise_is_believed_until_nothing_is_seen_of_it() -> None:
    levels = DraftLevels()
    for _ in range(100):
        levels.observe_promise(1, 10.0, 6.0)
    assert levels.kept(1) == pytest.approx(0.6)
    assert DraftLevels().kept(1) == 1.0
    for _ in range(1_000):
        levels.fade(1)
    assert levels.kept(1) == pytest.approx(1.0, abs=0.01)


def test_what_was_seen_with_one_micro_batch_goes_for_two_until_they_are_seen_and_again_when_they_are_not() -> None:
    levels = DraftLevels()
    for _ in range(100):
        levels.observe_promise(1, 10.0, 12.0)
    assert levels.kept(2) == pytest.approx(1.2)
    for _ in range(100):
        levels.observe_promise(2, 10.0, 8.0)
    assert levels.kept(2) == pytest.approx(0.8)
    assert 0.8 < levels.kept(1) < 1.0, "the levels have changed since"
    for _ in range(1_000):
        levels.observe_promise(2, 10.0, 8.0)
    assert levels.kept(1) == pytest.approx(0.8, abs=0.01)
