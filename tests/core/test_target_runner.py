"""The target runner's promise: trees, batches and failovers give the tokens of plain decoding, which are those of
transformers' own `generate`."""

from __future__ import annotations

import numpy as np
import pytest

from dflash_core.contracts import SequenceKey, TreeRows
from dflash_core.trees.structure import root_only
from tests.core.target_models import (
    CONFIGS,
    SAMPLINGS,
    decode_plainly,
    generate,
    make_subject,
    ok,
    prefill_of,
    random_prompt,
    random_tree,
    run,
)


@pytest.mark.parametrize("name", CONFIGS)
def test_plain_decoding_equals_generate(name: str) -> None:
    subject = make_subject(name)
    for seed, length in enumerate((1, 9, 23)):
        prompt = random_prompt(seed, length)
        assert decode_plainly(subject.runner, prompt, 20) == generate(subject.twin, prompt, 20)
    assert subject.runner.free_blocks == subject.runner.info.num_blocks


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
@pytest.mark.parametrize("name", CONFIGS)
def test_trees_give_the_tokens_of_plain_decoding(name: str, sampling: object) -> None:
    """Three sequences join one after the other, their prompts in chunks beside the others' trees."""
    assert sampling in SAMPLINGS.values()
    subject = make_subject(name)
    runner, rng = subject.runner, np.random.default_rng(4)
    num_tokens = 24
    prompts = {SequenceKey(f"s{i}", i): random_prompt(i, length) for i, length in enumerate((5, 17, 11))}
    expected = {key: decode_plainly(runner, prompt, num_tokens, sampling) for key, prompt in prompts.items()}

    done: dict[SequenceKey, list[int]] = {key: [] for key in prompts}
    prefilled = dict.fromkeys(prompts, 0)
    num_accepted = round_id = 0
    while any(len(tokens) < num_tokens for tokens in done.values()):
        prefills, trees, releases = [], [], []
        for i, (key, prompt) in enumerate(prompts.items()):
            if round_id < 2 * i:
                continue
            if prefilled[key] < len(prompt):
                end = min(len(prompt), prefilled[key] + int(rng.integers(1, 8)))
                prefills.append(prefill_of(key, prompt, prefilled[key], end, sampling))
                prefilled[key] = end
            elif len(done[key]) < num_tokens:
                left = num_tokens - len(done[key])
                nodes = int(rng.integers(0, 12)) if left > 1 else 0
                right = expected[key][len(done[key]) :]
                tree = random_tree(rng, done[key][-1], right, nodes, max_depth=min(5, left - 1))
                trees.append(TreeRows(key, len(prompt) + len(done[key]) - 1, tree))
        round_id += 1
        result = run(runner, prefills=tuple(prefills), trees=tuple(trees), releases=tuple(releases)).result
        assert [o.key for o in result.outcomes] == [p.key for p in prefills] + [t.key for t in trees]
        for outcome in result.outcomes:
            ok(outcome)
            if outcome.bonus_token >= 0:
                done[outcome.key] += [*outcome.token_ids.tolist(), outcome.bonus_token]
                num_accepted += outcome.num_accepted
                assert outcome.cached_len == len(prompts[outcome.key]) + len(done[outcome.key]) - 1
        assert result.free_blocks == runner.free_blocks
    assert done == expected
    assert num_accepted > 10  # else the trees tested nothing
    run(runner, releases=tuple(prompts))
    assert runner.free_blocks == runner.info.num_blocks
    assert runner.num_sequences == 0


def test_the_noise_is_that_of_the_chosen_tokens_position() -> None:
    """A wrong key would still be lossless: so compare with the noise itself, at the first token and at a node."""
    from dflash_core.sampling.noise import gumbel

    subject, sampling = make_subject(), SAMPLINGS["hot"]
    prompt = random_prompt(3, 9)
    tokens = decode_plainly(subject.runner, prompt, 6, sampling)
    import torch

    for i in range(len(tokens)):
        context = [*prompt.tolist(), *tokens[:i]]
        with torch.inference_mode():
            logits = subject.twin(torch.tensor([context])).logits[0, -1].numpy()
        noise = gumbel(sampling.seed, len(context), np.arange(len(logits)))
        assert int(np.argmax(logits + noise)) == tokens[i]


def test_prefilling_committed_tokens_again_goes_on_with_the_same_tokens() -> None:
    subject, sampling = make_subject(), SAMPLINGS["hot"]
    prompt = random_prompt(1, 10)
    tokens = decode_plainly(subject.runner, prompt, 16, sampling)
    again = np.concatenate([prompt, np.array(tokens[:7], np.int32)])
    assert decode_plainly(subject.runner, again, 9, sampling) == tokens[7:]


def test_a_higher_attempt_replaces_a_lower_one() -> None:
    subject = make_subject()
    runner, prompt = subject.runner, random_prompt(2, 12)
    expected = decode_plainly(runner, prompt, 6)
    run(runner, prefills=(prefill_of(SequenceKey("s", 0), prompt),))
    held = runner.info.num_blocks - runner.free_blocks
    assert decode_plainly(runner, prompt, 6, key=SequenceKey("s", 3)) == expected
    assert held == 3
    assert runner.free_blocks == runner.info.num_blocks


def test_a_path_that_outgrows_the_blocks_is_cut_and_loses_nothing() -> None:
    subject = make_subject(num_blocks=32, kv_block_size=4)
    runner, prompt = subject.runner, random_prompt(5, 8)
    expected = decode_plainly(runner, prompt, 12)
    filler, key = SequenceKey("filler", 0), SequenceKey("s", 0)
    run(runner, prefills=(prefill_of(key, prompt), prefill_of(filler, random_prompt(6, 116))))
    assert runner.free_blocks == 1
    chain = random_tree(np.random.default_rng(0), expected[0], [], 0, 1)
    chain = type(chain)(np.array(expected[:8], np.int32), np.arange(8, dtype=np.int32))
    outcome = ok(run(runner, trees=(TreeRows(key, 8, chain),)).result.outcomes[0])
    assert [*outcome.token_ids.tolist(), outcome.bonus_token] == expected[1:5]
    assert (outcome.cached_len, runner.free_blocks) == (12, 0)
    # Nobody was preempted for guesses. For the next root, which is none, the younger sequence is.
    result = run(runner, trees=(TreeRows(key, 12, root_only(outcome.bonus_token)),)).result
    assert ok(result.outcomes[0]).bonus_token == expected[5]
    assert (result.preempted, runner.num_sequences) == ((filler,), 1)
