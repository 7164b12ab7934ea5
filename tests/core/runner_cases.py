"""A target and a drafter whose attention is Triton's; collected like `attention_cases.py`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dflash_core.attention.split_kv.attention import is_interpreted
from dflash_core.contracts import SequenceKey, TreeRows
from tests.core.target_models import generate, make_subject, ok, prefill_of, random_prompt, random_tree, run


@pytest.fixture(scope="module")
def device() -> torch.device:
    return torch.device("cpu" if is_interpreted() else "cuda")


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "gemma3", "qwen3_moe"])
def test_a_target_gives_the_tokens_of_generate(name: str, device: torch.device) -> None:
    """Two prompts, one of them in chunks beside the other's trees."""
    subject = make_subject(name, device, attention="triton")
    keys, rng = [SequenceKey("a", 0), SequenceKey("b", 0)], np.random.default_rng(3)
    prompts = [random_prompt(1, 23), random_prompt(2, 17)]
    expected = [generate(subject.twin, prompt, 10) for prompt in prompts]

    first = ok(run(subject.runner, prefills=(prefill_of(keys[0], prompts[0]),)).result.outcomes[0])
    done: list[list[int]] = [[first.bonus_token], []]
    for start, end in ((0, 11), (11, 17), (17, 17)):
        trees = [
            TreeRows(key, len(prompt) + len(tokens) - 1, random_tree(rng, tokens[-1], right[len(tokens) :], 9, 2))
            for key, prompt, tokens, right in zip(keys, prompts, done, expected, strict=True)
            if tokens
        ]
        prefills = (prefill_of(keys[1], prompts[1], start, end),) if start < end else ()
        for outcome in run(subject.runner, prefills=prefills, trees=tuple(trees)).result.outcomes:
            ok(outcome)
            if outcome.bonus_token >= 0:
                done[keys.index(outcome.key)] += [*outcome.token_ids.tolist(), outcome.bonus_token]
    assert [len(tokens) >= count for tokens, count in zip(done, (4, 2), strict=True)] == [True, True]
    assert done == [right[: len(tokens)] for tokens, right in zip(done, expected, strict=True)]
