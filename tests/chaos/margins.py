"""Whether two outputs differ where fp32 cannot tell the two tokens apart (ARCHITECTURE section 1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from transformers.models.auto import AutoModelForCausalLM

from cluster.requests import GenerationRequest
from dflash_core.contracts import Prefill, RoundRequest, SamplingParams, SequenceKey
from dflash_core.runners.target import TargetRunner
from tests.core.margin_cases import Doubles, is_explained
from tests.tiny import TinyPair

_MEASURED_TOKENS = 256


class Margins:
    """Judges by the same weights in float64. Nothing is loaded or measured until two outputs differ."""

    def __init__(self, pair: TinyPair, runner: TargetRunner) -> None:
        self._pair = pair
        self._runner = runner

    @cached_property
    def _exact(self) -> torch.nn.Module:
        return AutoModelForCausalLM.from_pretrained(self._pair.target, dtype=torch.float64).eval()

    def _exact_logits(self, token_ids: Sequence[int]) -> Doubles:
        """`[len(token_ids), vocab_size]`."""
        with torch.inference_mode():
            logits: Doubles = self._exact(torch.tensor([list(token_ids)])).logits[0].numpy()
        return logits[:, : self._pair.settings.vocab_size]

    @cached_property
    def error(self) -> float:
        """The largest difference of a logit between the runner in fp32 and float64, along one random sequence."""
        rng = np.random.default_rng(0)
        tokens = rng.integers(2, self._pair.settings.vocab_size, _MEASURED_TOKENS).astype(np.int32)
        exact = self._exact_logits(tokens.tolist())
        seen: list[Doubles] = []
        model, forward = self._runner._model, self._runner._model.forward

        def recorded(*arguments: object) -> object:
            output = forward(*arguments)
            seen.append(output.logits.double().numpy())
            return output

        model.forward = recorded
        try:
            largest = 0.0
            key = SequenceKey("margins", 1)
            for length in range(16, _MEASURED_TOKENS, 16):
                prefill = Prefill(key, tokens[:length], 0, True, length, SamplingParams())
                self._runner.run_round(RoundRequest(1, prefills=(prefill,)))
                self._runner.run_round(RoundRequest(2, releases=(key,)))
                logits = seen[-1].reshape(-1, seen[-1].shape[-1])[-1, : exact.shape[1]]
                largest = max(largest, float(np.abs(logits - exact[length - 1]).max()))
        finally:
            model.forward = forward
        return largest

    def check_explained(self, request: GenerationRequest, expected: list[int], got: list[int]) -> None:
        """Fails unless the first difference is one that the error of fp32 allows. What follows it may be anything."""
        first = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), None)
        assert first is not None, f"{request.sequence_id}: {len(got)} tokens instead of {len(expected)}"
        prefix = [*request.token_ids.tolist(), *expected[:first]]
        logits = self._exact_logits(prefix)[-1]
        tokens = (expected[first], got[first])
        assert is_explained(logits, len(prefix), request.sampling, tokens, self.error), (
            f"{request.sequence_id}: token {first} is {got[first]} instead of {expected[first]}, logits "
            f"{logits[tokens[1]]} and {logits[tokens[0]]}, error {self.error:.2e}"
        )
