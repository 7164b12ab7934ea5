"""bf16: where trees and plain decoding differ, the two tokens' scores are closer than the measured error allows.

Products of one row and of many differ in their last bits, so equality cannot be asked of bf16 (ARCHITECTURE section 1).
Collected like `attention_cases.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import PreTrainedModel
from transformers.models.auto import AutoModelForCausalLM

from dflash_core.attention.split_kv.launch import is_interpreted
from dflash_core.contracts import SamplingParams, SequenceKey, TreeRows
from dflash_core.runners.settings import TargetSettings
from dflash_core.runners.target import TargetRunner
from dflash_core.sampling.noise import gumbel
from tests.core.target_configs import CONFIGS
from tests.core.target_models import decode_plainly, ok, prefill_of, random_prompt, random_tree, run

Doubles = npt.NDArray[np.float64]
KEY = SequenceKey("s", 0)


@pytest.fixture(scope="module")
def device() -> torch.device:
    return torch.device("cpu" if is_interpreted() else "cuda")


class Bf16Target:
    """A runner in bf16, the same weights in float64, and the largest error seen between the two."""

    def __init__(self, device: torch.device, attention: str) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS["qwen3"])).eval()
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
        model.to(torch.bfloat16)
        self.exact: PreTrainedModel = AutoModelForCausalLM.from_config(
            copy.deepcopy(CONFIGS["qwen3"]), attn_implementation="eager"
        )
        self.exact.load_state_dict(model.state_dict())
        self.exact.double().eval()
        settings = TargetSettings(
            kv_block_size=4, num_blocks=64, max_rows=64, max_tree_rows=32, attention=attention, compile=False
        )
        self.runner = TargetRunner(model.to(device), None, settings)
        self.error = 0.0

    def exact_logits(self, token_ids: Sequence[int]) -> Doubles:
        """`[len(token_ids), vocab_size]`."""
        with torch.inference_mode():
            logits: Doubles = self.exact(torch.tensor([list(token_ids)])).logits[0].numpy()
        return logits

    @contextmanager
    def seen_logits(self) -> Iterator[list[Doubles]]:
        """The logits of every forward in between, `[num_choices, vocab_size]` each."""
        model, seen = self.runner._model, list[Doubles]()
        forward: Callable[..., Any] = model.forward

        def recorded(*args: Any) -> Any:
            output = forward(*args)
            seen.append(output.logits.double().cpu().numpy())
            return output

        model.forward = recorded  # type: ignore[method-assign]
        try:
            yield seen
        finally:
            model.forward = forward  # type: ignore[method-assign]

    def decode_with_trees(
        self, prompt: npt.NDArray[np.int32], right: Sequence[int], sampling: SamplingParams
    ) -> list[int]:
        """As many tokens as `right` has, with random trees in which its tokens are likely; measures the errors of the
        logits along the accepted paths."""
        rng = np.random.default_rng(5)
        outcome = ok(run(self.runner, prefills=(prefill_of(KEY, prompt, sampling=sampling),)).result.outcomes[0])
        tokens = [outcome.bonus_token]
        while len(tokens) < len(right):
            tree = random_tree(rng, tokens[-1], right[len(tokens) :], 7, 4)
            with self.seen_logits() as seen:
                rows = TreeRows(KEY, len(prompt) + len(tokens) - 1, tree)
                outcome = ok(run(self.runner, trees=(rows,)).result.outcomes[0])
            exact = self.exact_logits([*prompt.tolist(), *tokens])[-1]
            self.error = max(self.error, float(np.abs(seen[0][0] - exact).max()))
            tokens += [*outcome.token_ids.tolist(), outcome.bonus_token]
        run(self.runner, releases=(KEY,))
        return tokens[: len(right)]


def is_explained(
    logits: Doubles, position: int, sampling: SamplingParams, tokens: tuple[int, int], error: float
) -> bool:
    """Whether logits that are each off by at most `error` may choose either of the two tokens; without truncation."""
    scores = logits
    if not sampling.is_greedy:
        noise = gumbel(sampling.seed, position, np.arange(len(logits))).astype(np.float64)
        scores = logits / sampling.temperature + noise
        error /= sampling.temperature
    return bool(scores.max() - min(scores[token] for token in tokens) <= 2 * error)


@pytest.mark.parametrize("attention", ["torch", pytest.param("triton", marks=pytest.mark.slow)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_bf16_differs_only_within_the_measured_error(temperature: float, attention: str, device: torch.device) -> None:
    target = Bf16Target(device, attention)
    num_prompts, num_tokens = (12, 24) if attention == "torch" or not is_interpreted() else (1, 8)
    num_clear = num_equal = 0
    for seed in range(num_prompts):
        prompt, sampling = random_prompt(seed, 9), SamplingParams(temperature=temperature, seed=seed)
        with target.seen_logits() as seen:
            plain = decode_plainly(target.runner, prompt, num_tokens, sampling, KEY)
        exact = target.exact_logits([*prompt.tolist(), *plain])
        for place, logits in enumerate(seen):
            target.error = max(target.error, float(np.abs(logits[0] - exact[len(prompt) - 1 + place]).max()))
        with_trees = target.decode_with_trees(prompt, plain, sampling)
        first = next((i for i, (a, b) in enumerate(zip(plain, with_trees, strict=True)) if a != b), num_tokens)
        num_equal += first
        for i in range(min(first + 1, num_tokens)):
            logits, position = exact[len(prompt) - 1 + i], len(prompt) + i
            assert is_explained(logits, position, sampling, (plain[i], with_trees[i]), target.error)
            num_clear += not is_explained(logits, position, sampling, (plain[i], int(logits.argmin())), target.error)
    print(f"T = {temperature}, {attention}: {num_equal} equal tokens, largest error of a logit {target.error:.3f}")
    assert num_equal > num_prompts * num_tokens // 4
    assert num_clear > num_equal // 2, "an error so large explains everything"


def test_a_wrong_token_is_not_explained() -> None:
    logits = np.array([1.0, 0.9, -3.0])
    assert is_explained(logits, 4, SamplingParams(), (0, 1), 0.06)
    assert not is_explained(logits, 4, SamplingParams(), (0, 1), 0.04)
    assert not is_explained(logits, 4, SamplingParams(), (0, 2), 0.06)
    noisy = logits / 0.5 + gumbel(3, 4, np.arange(3))
    best, worst = int(noisy.argmax()), int(noisy.argmin())
    assert not is_explained(logits, 4, SamplingParams(temperature=0.5, seed=3), (best, worst), 0.01)
