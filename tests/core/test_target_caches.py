"""What a round leaves in pages and sends to drafters, against one dense forward of transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from dflash_core.cache.pools import slots_of
from dflash_core.contracts import DraftTree, Refill, SequenceKey, TreeRows
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
    random_tree,
    run,
)

KEY = SequenceKey("s", 0)


def cached_kv(subject: Subject, key: SequenceKey) -> Tensor:
    """`[layers, 2, cached_len, num_kv_heads, head_dim]` as it stands in the runner's pages."""
    sequence = subject.runner._sequences._by_id[key.sequence_id]
    slots = torch.from_numpy(slots_of(sequence.block_table, 0, sequence.cached_len, 4))
    return subject.runner._caches.kv.pages.flatten(2, 3).index_select(2, slots)


def dense_kv(subject: Subject, token_ids: list[int]) -> Tensor:
    # A cache without a config keeps all tokens in sliding layers too.
    cache = DynamicCache()
    with torch.inference_mode():
        subject.twin(torch.tensor([token_ids]), past_key_values=cache)
    return torch.stack([torch.stack([layer.keys[0], layer.values[0]]).transpose(1, 2) for layer in cache.layers])


def decode_with_trees(
    subject: Subject, prompt: np.ndarray, num_tokens: int, address: str, expected: list[int] | None = None
) -> tuple[list[int], list]:
    """Tokens (the last one is the root, not cached) and every chunk for `address`. `expected`: by plain decoding."""
    expected = expected or decode_plainly(subject.runner, prompt, num_tokens + 8, SAMPLINGS["hot"])
    rng, chunks, tokens = np.random.default_rng(1), [], []
    for start in range(0, len(prompt), 6):
        end = min(start + 6, len(prompt))
        chunk = prefill_of(KEY, prompt, start, end, SAMPLINGS["hot"], drafter_address=address)
        done = run(subject.runner, prefills=(chunk,))
        chunks += done.context.get(address, [])
    tokens.append(ok(done.result.outcomes[0]).bonus_token)
    while len(tokens) < num_tokens:
        tree = random_tree(rng, tokens[-1], expected[len(tokens) :], 9, 4)
        done = run(subject.runner, trees=(TreeRows(KEY, len(prompt) + len(tokens) - 1, tree),))
        outcome = ok(done.result.outcomes[0])
        tokens += [*outcome.token_ids.tolist(), outcome.bonus_token]
        chunks += done.context.get(address, [])
    assert tokens == expected[: len(tokens)]
    return tokens, chunks


@pytest.mark.parametrize("name", CONFIGS)
def test_pages_hold_what_a_dense_run_computes(name: str) -> None:
    subject, prompt = make_subject(name), random_prompt(0, 15)
    tokens, _ = decode_with_trees(subject, prompt, 14, "d")
    committed = [*prompt.tolist(), *tokens[:-1]]
    torch.testing.assert_close(cached_kv(subject, KEY), dense_kv(subject, committed), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_features_are_the_captured_layers_projected(name: str) -> None:
    subject, prompt = make_subject(name), random_prompt(0, 15)
    tokens, chunks = decode_with_trees(subject, prompt, 14, "d")
    committed = [*prompt.tolist(), *tokens[:-1]]
    positions, features = positions_and_features(chunks)
    assert positions == list(range(len(committed)))
    assert {chunk.key for chunk in chunks} == {KEY}
    torch.testing.assert_close(features, dense_features(subject, committed), rtol=1e-4, atol=1e-5)


def test_a_refill_sends_from_there_on_to_the_new_drafter_only() -> None:
    subject, prompt = make_subject(), random_prompt(0, 9)
    tokens, _ = decode_with_trees(subject, prompt, 3, "old")
    committed = [*prompt.tolist(), *tokens[:-1]]
    done = run(subject.runner, refills=(Refill(KEY, 4, "new"),))
    assert list(done.context) == ["new"]
    positions, features = positions_and_features(done.context["new"])
    assert positions == list(range(4, len(committed)))
    torch.testing.assert_close(features, dense_features(subject, committed)[4:], rtol=1e-4, atol=1e-5)

    root = DraftTree(np.array(tokens[-1:], np.int32), np.zeros(1, np.int32))
    done = run(subject.runner, trees=(TreeRows(KEY, len(committed), root),))
    assert {address: [c.start for c in chunks] for address, chunks in done.context.items()} == {"new": [len(committed)]}
    lower_attempt = Refill(SequenceKey("nobody", 0), 0, "new")
    assert run(subject.runner, refills=(lower_attempt,)).context == {}


def test_features_for_nobody_stay_in_the_pages_until_they_are_asked_for() -> None:
    subject, prompt = make_subject(), random_prompt(0, 9)
    tokens, chunks = decode_with_trees(subject, prompt, 3, "d")
    done = run(subject.runner, refills=(Refill(KEY, len(prompt) + len(tokens) - 1, ""),))
    assert done.context == {}
    for _ in range(3):
        root = DraftTree(np.array(tokens[-1:], np.int32), np.zeros(1, np.int32))
        done = run(subject.runner, trees=(TreeRows(KEY, len(prompt) + len(tokens) - 1, root),))
        assert done.context == {}
        tokens.append(ok(done.result.outcomes[0]).bonus_token)
    begin = sum(chunk.features.shape[0] for chunk in chunks)
    done = run(subject.runner, refills=(Refill(KEY, begin, "d"),))
    positions, features = positions_and_features([*chunks, *done.context["d"]])
    committed = [*prompt.tolist(), *tokens[:-1]]
    assert positions == list(range(len(committed)))
    torch.testing.assert_close(features, dense_features(subject, committed), rtol=1e-4, atol=1e-5)


def test_features_the_drafter_has_are_not_sent() -> None:
    subject, prompt = make_subject(), random_prompt(0, 12)
    done = run(subject.runner, prefills=(prefill_of(KEY, prompt, drafter_address="d", features_from=7),))
    positions, _ = positions_and_features(done.context["d"])
    assert positions == list(range(7, 12))


def test_chunks_are_at_most_one_mebibyte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dflash_core.runners.target.MAX_CHUNK_BYTES", 5 * 32 * 4)
    subject, prompt = make_subject(), random_prompt(0, 12)
    chunks = run(subject.runner, prefills=(prefill_of(KEY, prompt, drafter_address="d"),)).context["d"]
    assert [(c.start, c.features.shape) for c in chunks] == [(0, (5, 32)), (5, (5, 32)), (10, (2, 32))]
    _, features = positions_and_features(chunks)
    torch.testing.assert_close(features, dense_features(subject, prompt.tolist()), rtol=1e-4, atol=1e-5)


def test_packed_rows_equal_separate_runs() -> None:
    """Sequences of one round do not feel each other: to the last bits that other matrix shapes leave."""
    subject = make_subject()
    prompts = {SequenceKey(f"s{i}", 0): random_prompt(i, 5 + 6 * i) for i in range(4)}
    run(subject.runner, prefills=tuple(prefill_of(key, prompt) for key, prompt in prompts.items()))
    for key, prompt in prompts.items():
        torch.testing.assert_close(cached_kv(subject, key), dense_kv(subject, prompt.tolist()), rtol=1e-4, atol=1e-5)
