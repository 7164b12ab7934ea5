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


def test_those_sampled_alike_have_promises_of_their_own() -> None:
    levels = DraftLevels()
    greedy, sampled = _sequence(0.0), _sequence(1.0)
    levels.promises([greedy, greedy]).observe(1, 1e4, 1.2e4)
    levels.promises([sampled]).observe(1, 1e4, 6e3)
    assert levels.promises([greedy]).kept(1) == pytest.approx(1.2)
    assert levels.promises([sampled, sampled]).kept(1) == pytest.approx(0.6)
    assert levels.promises([sampled, greedy]).kept(1) == 1.0
