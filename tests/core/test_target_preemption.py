"""More sequences than blocks: the youngest give way, the oldest go on, and every token is that of plain decoding."""

from __future__ import annotations

import numpy as np
import pytest

from dflash_core.contracts import Outcome, OutcomeStatus, Prefill, Refill, SamplingParams, SequenceKey, TreeRows
from dflash_core.errors import InvalidSettings
from dflash_core.runners.target import TargetRunner
from dflash_core.trees.structure import root_only
from tests.core.miniature_router import Job, MiniatureRouter, chunk_of
from tests.core.target_models import SAMPLINGS, decode_plainly, make_subject, ok, prefill_of, random_prompt, run

A, B, C, D = (SequenceKey(name, 1) for name in "abcd")
PROMPTS = {key: random_prompt(i, 40) for i, key in enumerate((A, B, C, D))}
EXPECTED: dict[SequenceKey, list[int]] = {}


@pytest.fixture(scope="module")
def oracle() -> TargetRunner:
    return make_subject(prefix_caching=False).runner


@pytest.fixture(scope="module", autouse=True)
def _expected(oracle: TargetRunner) -> None:
    EXPECTED.update({key: decode_plainly(oracle, prompt, 4) for key, prompt in PROMPTS.items()})


def prefill(key: SequenceKey, length: int = 40) -> Prefill:
    return prefill_of(key, PROMPTS[key][:length])


def root(key: SequenceKey) -> TreeRows:
    return TreeRows(key, 40, root_only(EXPECTED[key][0]))


def status(outcome: Outcome) -> OutcomeStatus:
    return outcome.status


def full_runner() -> TargetRunner:
    """32 blocks of 4: A, B and C hold ten each, two are free."""
    runner = make_subject(num_blocks=32).runner
    for key in (A, B, C):
        ok(run(runner, prefills=(prefill(key),)).result.outcomes[0])
    assert runner.free_blocks == 2
    return runner


def test_who_opens_displaces_nobody() -> None:
    runner = full_runner()
    result = run(runner, prefills=(prefill(D, 12),), trees=(root(A),)).result
    assert [status(outcome).value for outcome in result.outcomes] == ["out_of_blocks", "ok"]
    assert result.outcomes[0].message == "3 KV blocks are needed for 12 tokens, 1 are free"
    assert result.preempted == (D,)
    assert (runner.num_sequences, runner.free_blocks) == (3, 1)
    assert status(run(runner, prefills=(prefill(D, 4),)).result.outcomes[0]) is OutcomeStatus.OK


def test_the_youngest_gives_way_also_without_rows_in_the_round() -> None:
    runner = full_runner()
    tokens = decode_plainly(make_subject(prefix_caching=False).runner, PROMPTS[A], 14)
    for i in range(13):  # A grows from 10 to 13 blocks, alone
        result = run(runner, trees=(TreeRows(A, 40 + i, root_only(tokens[i])),)).result
        assert ok(result.outcomes[0]).bonus_token == tokens[i + 1]
        assert result.preempted == ((C,) if i == 8 else ())
    assert (runner.num_sequences, runner.free_blocks) == (2, 32 - 10 - 14)


@pytest.mark.parametrize("order", [(A, B, C), (C, B, A)])
def test_the_oldest_is_served_first_whatever_the_order_of_the_request(order: tuple[SequenceKey, ...]) -> None:
    """Three roots need a block each, two are free: C, though it has rows, gives way, and is told so."""
    runner = full_runner()
    result = run(runner, trees=tuple(root(key) for key in order)).result
    assert [outcome.key for outcome in result.outcomes] == list(order)
    outcomes = {outcome.key: outcome for outcome in result.outcomes}
    assert [status(outcomes[key]).value for key in (A, B, C)] == ["ok", "ok", "out_of_blocks"]
    assert [outcomes[key].bonus_token for key in (A, B, C)] == [EXPECTED[A][1], EXPECTED[B][1], -1]
    assert outcomes[C].cached_len == 0
    assert result.preempted == (C,)
    assert (runner.num_sequences, runner.free_blocks) == (2, 10)
    # It comes back as the youngest, finds what was its own, and goes on with the same tokens.
    again = SequenceKey("c", 2)
    outcome = ok(run(runner, prefills=(prefill_of(again, PROMPTS[C]),)).result.outcomes[0])
    assert (outcome.bonus_token, outcome.num_hit_tokens) == (EXPECTED[C][0], 36)
    assert run(runner, trees=(root(C),)).result.outcomes[0].status is OutcomeStatus.STALE_ATTEMPT


def test_a_new_attempt_is_the_youngest_again() -> None:
    runner = full_runner()
    run(runner, trees=(root(A), root(B)))
    longer = np.concatenate([PROMPTS[A], random_prompt(7, 60)])
    again = chunk_of(SequenceKey("a", 2), longer, 0, 60, SamplingParams())
    # It has the 11 blocks of the attempt it replaces, and needs 25. Those of B and C it does not get.
    result = run(runner, prefills=(again,), trees=(TreeRows(B, 41, root_only(EXPECTED[B][1])),)).result
    assert [status(outcome).value for outcome in result.outcomes] == ["out_of_blocks", "ok"]
    assert result.preempted == (again.key,)
    assert (runner.num_sequences, runner.free_blocks) == (2, 11)


def test_several_give_way_to_one_and_a_chunk_of_a_victim_is_refused() -> None:
    runner = make_subject(num_blocks=32).runner
    whole = np.concatenate([PROMPTS[A], random_prompt(7, 70)])
    run(runner, prefills=(chunk_of(A, whole, 0, 30, SamplingParams()),))
    for key in (B, C):
        run(runner, prefills=(chunk_of(key, PROMPTS[key], 0, 36, SamplingParams()),))
    assert runner.free_blocks == 32 - 8 - 9 - 9
    later = chunk_of(A, whole, 30, 80, SamplingParams())
    rest = [chunk_of(key, PROMPTS[key], 36, 4, SamplingParams()) for key in (C, B)]
    result = run(runner, prefills=(*rest, later), refills=(Refill(C, 0, "d"), Refill(A, 0, "d"))).result
    assert [status(outcome).value for outcome in result.outcomes] == ["out_of_blocks", "out_of_blocks", "ok"]
    assert [outcome.message for outcome in result.outcomes] == [
        "c was preempted by an older sequence",
        "b was preempted by an older sequence",
        "",
    ]
    assert result.preempted == (C, B)
    assert (runner.num_sequences, runner.free_blocks) == (1, 32 - 28)
    run(runner, releases=(A,))
    assert runner._sequences.blocks._num_holders == [0] * 32


def test_preempted_before_a_round_fails_is_told_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = full_runner()
    with monkeypatch.context() as broken:
        broken.setattr(runner._model, "forward", None)
        with pytest.raises(TypeError):
            run(runner, trees=(root(A), root(B), root(C)))
    assert run(runner).result.preempted == (C,)
    assert run(runner).result.preempted == ()


def test_a_pool_that_cannot_hold_the_longest_sequence_is_refused() -> None:
    with pytest.raises(
        InvalidSettings, match="num_blocks 31, the cache holds 124 tokens, .* max_model_len 128 .* at least 32"
    ):
        make_subject(num_blocks=31)


@pytest.mark.parametrize(("name", "prefix_caching"), [("greedy", True), ("hot", True), ("warm", False)])
def test_many_sequences_in_a_pool_far_too_small(name: str, prefix_caching: bool, oracle: TargetRunner) -> None:
    """Eight sequences of up to 120 tokens at a time in a pool for 128, among them ones with common prefixes."""
    rng, sampling = np.random.default_rng(11), SAMPLINGS[name]
    stem, jobs = random_prompt(0, 100), list[Job]()
    for i in range(8):
        length = int(rng.integers(1, 80))
        prompt = np.concatenate([stem[: length // 2], random_prompt(i, length - length // 2)])
        jobs.append(Job(f"s{i}", prompt, decode_plainly(oracle, prompt, int(rng.integers(8, 40)), sampling), sampling))
    runner = make_subject(num_blocks=32, prefix_caching=prefix_caching).runner
    router = MiniatureRouter(runner, rng, max_running=8)
    router.run(jobs)
    assert router.num_preempted > 20
    assert router.num_accepted > 20
    assert (sum(hit for job in jobs for hit in job.num_hit_tokens) > 0) == prefix_caching
    assert (runner.free_blocks, runner.num_sequences) == (32, 0)
    assert runner._sequences.blocks._num_holders == [0] * 32
