"""Sequences that share their first tokens: computed once, and nobody can tell, drafters included."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import numpy.typing as npt
import pytest
import torch

from dflash_core.cache.pools import slots_of
from dflash_core.contracts import ContextChunk, OutcomeStatus, SamplingParams, SequenceKey, TreeRows
from dflash_core.runners.target import TargetRunner
from dflash_core.trees.structure import root_only
from tests.core.miniature_router import Job, MiniatureRouter, chunk_of
from tests.core.target_models import (
    CONFIGS,
    SAMPLINGS,
    Subject,
    decode_plainly,
    dense_features,
    make_subject,
    ok,
    positions_and_features,
    prefill_of,
    random_prompt,
    run,
)

KEY = SequenceKey("second", 0)
GREEDY = SAMPLINGS["greedy"]


def forget(runner: TargetRunner, *keys: SequenceKey) -> None:
    run(runner, releases=keys)


def compute(runner: TargetRunner, prompt: npt.NDArray[np.int32]) -> None:
    """Leaves the prompt's full blocks findable and idle."""
    key = SequenceKey("first", 0)
    ok(run(runner, prefills=(prefill_of(key, prompt),)).result.outcomes[0])
    forget(runner, key)
    assert runner.num_sequences == 0
    assert runner.free_blocks == runner.info.num_blocks


@pytest.fixture(scope="module")
def oracle() -> TargetRunner:
    return make_subject(prefix_caching=False).runner


@pytest.mark.parametrize("chunk", [1, 3, 8, 30])
@pytest.mark.parametrize(
    ("common", "length", "num_hit_tokens"),
    [
        (23, 23, 20),  # the whole prompt is cached; its last block is not full
        (24, 24, 20),  # … or full, and has to be computed all the same: else there were no logits
        (24, 25, 24),
        (12, 23, 12),  # the hit ends in the middle
        (14, 23, 12),
        (3, 23, 0),
        (5, 5, 4),
    ],
)
def test_a_hit_is_as_many_rows_from_there_on(
    common: int, length: int, num_hit_tokens: int, chunk: int, oracle: TargetRunner
) -> None:
    """In blocks of 4. The first outcome tells where the sequence stands; the next chunk starts there."""
    subject = make_subject()
    first, prompt = random_prompt(1, 24), random_prompt(2, length)
    prompt[:common] = first[:common]
    expected = decode_plainly(oracle, prompt, 12, SAMPLINGS["hot"])
    compute(subject.runner, first)

    start, hits, outcome = 0, [], None
    while start < length:
        prefill = chunk_of(KEY, prompt, start, chunk, SAMPLINGS["hot"])
        outcome = ok(run(subject.runner, prefills=(prefill,)).result.outcomes[0])
        assert outcome.cached_len == min(max(start, outcome.num_hit_tokens) + chunk, length)
        assert (outcome.bonus_token >= 0) == (outcome.cached_len == length)
        start = outcome.cached_len
        hits.append(outcome.num_hit_tokens)
    assert hits == [num_hit_tokens] + [0] * (len(hits) - 1)
    assert len(hits) == -(-(length - num_hit_tokens) // chunk)
    assert outcome is not None
    tokens = [outcome.bonus_token]
    while len(tokens) < 12:
        tree = TreeRows(KEY, length + len(tokens) - 1, root_only(tokens[-1]))
        tokens.append(ok(run(subject.runner, trees=(tree,)).result.outcomes[0]).bonus_token)
    assert tokens == expected
    forget(subject.runner, KEY)
    assert subject.runner.free_blocks == subject.runner.info.num_blocks


def test_switched_off_nothing_is_found() -> None:
    subject, prompt = make_subject(prefix_caching=False), random_prompt(1, 20)
    compute(subject.runner, prompt)
    outcome = ok(run(subject.runner, prefills=(prefill_of(KEY, prompt),)).result.outcomes[0])
    assert outcome.num_hit_tokens == 0
    assert subject.runner._sequences.blocks.findable_blocks == 0


def test_what_was_decoded_is_found_like_a_prompt(oracle: TargetRunner) -> None:
    """As after a failover: prompt and committed tokens are prefilled, trees wrote most of their blocks."""
    subject, sampling = make_subject(), SAMPLINGS["warm"]
    prompt = random_prompt(3, 6)
    expected = decode_plainly(oracle, prompt, 30, sampling)
    job = Job("s", prompt, expected[:17], sampling)
    MiniatureRouter(subject.runner, np.random.default_rng(5), max_running=1).run([job])
    # The last token was chosen only: its KV does not exist, nor that of what was accepted beyond.
    again = Job("s", prompt, expected, sampling, attempt=1, done=expected[:17])
    router = MiniatureRouter(subject.runner, np.random.default_rng(6), max_running=1)
    router.run([again])
    assert again.num_hit_tokens == [20]
    assert router.num_accepted > 0


def test_a_shared_block_is_held_until_its_last_holder_goes_and_never_written(oracle: TargetRunner) -> None:
    subject, common = make_subject(), random_prompt(1, 12)
    runner = subject.runner
    keys = [SequenceKey(f"s{i}", 0) for i in range(3)]
    prompts = [np.concatenate([common, random_prompt(10 + i, 5)]) for i in range(3)]
    for key, prompt in zip(keys, prompts, strict=True):
        ok(run(runner, prefills=(prefill_of(key, prompt),)).result.outcomes[0])
    tables = [runner._sequences._by_id[key.sequence_id].block_table for key in keys]
    shared = tables[0][:3]
    assert [table[:3] for table in tables] == [shared] * 3
    assert len({block for table in tables for block in table[3:]}) == 3 * 2
    assert runner.free_blocks == 64 - 9
    before = runner._caches.kv.pages[:, :, shared].clone()
    expected = [decode_plainly(oracle, prompt, 20) for prompt in prompts]
    for key, prompt, tokens in zip(keys, prompts, expected, strict=True):
        for i in range(10):
            tree = TreeRows(key, len(prompt) + i, root_only(tokens[i]))
            assert ok(run(runner, trees=(tree,)).result.outcomes[0]).bonus_token == tokens[i + 1]
        held = 64 - runner.free_blocks
        own = len(runner._sequences._by_id[key.sequence_id].block_table) - 3
        forget(runner, key)
        assert 64 - runner.free_blocks == (held - own if key != keys[-1] else 0)
    assert torch.equal(runner._caches.kv.pages[:, :, shared], before)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hit_leaves_pages_and_drafter_with_what_a_dense_run_computes(name: str) -> None:
    subject: Subject = make_subject(name)
    runner, first, prompt = subject.runner, random_prompt(1, 24), random_prompt(2, 23)
    prompt[:17] = first[:17]
    compute(runner, first)
    chunks: list[ContextChunk] = []
    start = 0
    while start < len(prompt):
        prefill = chunk_of(KEY, prompt, start, 3, GREEDY)
        done = run(runner, prefills=(replace(prefill, drafter_address="d", features_from=start),))
        chunks += done.context["d"]
        start = ok(done.result.outcomes[0]).cached_len
    assert len(chunks) == 3  # 16 tokens were found, and 3 computed with them
    positions, features = positions_and_features(chunks)
    assert positions == list(range(len(prompt)))
    assert {chunk.key for chunk in chunks} == {KEY}
    torch.testing.assert_close(features, dense_features(subject, prompt.tolist()), rtol=1e-4, atol=1e-5)

    # Without the cache, the same to the last bits that other matrix shapes leave.
    plain = make_subject(name, prefix_caching=False)
    run(plain.runner, prefills=(prefill_of(KEY, prompt),))
    pages = []
    for one in (subject, plain):
        table = one.runner._sequences._by_id[KEY.sequence_id].block_table
        slots = torch.from_numpy(slots_of(table, 0, len(prompt), 4))
        pages.append(one.runner._caches.kv.pages.flatten(2, 3).index_select(2, slots))
    torch.testing.assert_close(*pages, rtol=1e-4, atol=1e-5)


def test_a_drafter_that_has_a_part_gets_the_rest_of_a_hit() -> None:
    subject, prompt = make_subject(), random_prompt(1, 24)
    compute(subject.runner, prompt)
    prefill = prefill_of(KEY, prompt, drafter_address="d", features_from=7)
    positions, features = positions_and_features(run(subject.runner, prefills=(prefill,)).context["d"])
    assert positions == list(range(7, 24))
    torch.testing.assert_close(features, dense_features(subject, prompt.tolist())[7:], rtol=1e-4, atol=1e-5)


def test_a_round_that_fails_before_its_features_are_written_publishes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, prompt = make_subject(), random_prompt(1, 24)
    runner = subject.runner

    def fail(*args: object) -> None:
        raise RuntimeError("no features")

    with monkeypatch.context() as broken:
        broken.setattr(runner._caches.projection, "project_context", fail)
        with pytest.raises(RuntimeError, match="no features"):
            run(runner, prefills=(prefill_of(KEY, prompt),))
    assert runner._sequences.blocks.findable_blocks == 0
    outcome = ok(run(runner, prefills=(prefill_of(SequenceKey("second", 1), prompt),)).result.outcomes[0])
    assert outcome.num_hit_tokens == 0


def test_logits_that_are_not_numbers_publish_nothing() -> None:
    subject = make_subject()
    runner, prompt = subject.runner, random_prompt(1, 9)
    with torch.no_grad():
        runner._model.model.get_input_embeddings().weight[int(prompt[2])] = float("nan")
    outcome = run(runner, prefills=(prefill_of(KEY, prompt),)).result.outcomes[0]
    assert outcome.status is OutcomeStatus.INVALID
    assert runner._sequences.blocks.findable_blocks == 0


@pytest.mark.parametrize(
    ("start", "is_last"),
    [(0, True), (4, False)],
)
def test_only_a_first_chunk_that_is_not_the_last_has_tokens_after_it(start: int, is_last: bool) -> None:
    subject, prompt = make_subject(), random_prompt(1, 12)
    run(subject.runner, prefills=(chunk_of(KEY, prompt, 0, 4, GREEDY),))
    key = KEY if start else SequenceKey("third", 0)
    chunk = replace(prefill_of(key, prompt, start, 8), is_last=is_last, following=prompt[8:])
    outcome = run(subject.runner, prefills=(chunk,)).result.outcomes[0]
    assert outcome.status is OutcomeStatus.INVALID
    assert f"4 tokens follow a chunk at {start} (last: {is_last})" in outcome.message


def test_what_follows_is_checked_like_the_chunk() -> None:
    subject = make_subject()
    for prompt, message in (
        (np.array([1] * 8 + [120], np.int32), r"got 1 to 120"),
        (random_prompt(1, 129), "129 tokens do not fit the target's context of 128"),
    ):
        outcome = run(subject.runner, prefills=(chunk_of(KEY, prompt, 0, 4, GREEDY),)).result.outcomes[0]
        assert outcome.status is OutcomeStatus.INVALID
        assert message in outcome.message


def make_jobs(
    oracle: TargetRunner, rng: np.random.Generator, number: int, max_tokens: int, sampling: SamplingParams
) -> list[Job]:
    """Prompts that branch off each other, so that hits of every length occur; each with its own oracle run."""
    prompts = [random_prompt(0, 30)]
    while len(prompts) < number:
        stem = prompts[rng.integers(len(prompts))]
        stem = stem[: rng.integers(len(stem))]
        prompts.append(np.concatenate([stem, random_prompt(len(prompts), int(rng.integers(1, 31 - len(stem))))]))
    jobs = []
    for i, prompt in enumerate(prompts):
        expected = decode_plainly(oracle, prompt, int(rng.integers(1, max_tokens)), sampling)
        jobs.append(Job(f"s{i}", prompt, expected, sampling))
    return jobs


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
def test_any_company_and_eviction_give_the_tokens_of_plain_decoding(
    sampling: SamplingParams, oracle: TargetRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool of 32 blocks for 24 sequences, 3 at a time, that are released and start again at any time."""
    rng = np.random.default_rng(8)
    runner = make_subject(num_blocks=32).runner
    evict = Mock(wraps=runner._sequences.blocks._evict)
    monkeypatch.setattr(runner._sequences.blocks, "_evict", evict)
    jobs = make_jobs(oracle, rng, 24, 12, sampling)
    router = MiniatureRouter(runner, rng, max_running=3, release=0.05)
    router.run(jobs)
    hits = [hit for job in jobs for hit in job.num_hit_tokens]
    assert router.num_accepted > 10
    assert len(hits) > len(jobs)
    assert sum(hits) > 100
    assert evict.call_count > 30
    assert runner.free_blocks == 32
    assert runner._sequences.blocks._num_holders == [0] * 32
