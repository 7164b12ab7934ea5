"""The reference arm: transformers' own `generate`, greedy, with its default cache and attention."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig

from cluster.bench.arms import Cell
from cluster.bench.samples import Decoded, GroupPrompt, PromptGroup
from cluster.bench.turns import Gate
from cluster.router.clock import now
from cluster.router.timeline import Timeline


class HuggingFaceDecoder:
    """The same checkpoint, dtype, device and threads as the other arms.

    Batches are padded on the left, and the next one begins when all of a batch have ended; so it has no lead-in.
    """

    def __init__(
        self,
        checkpoint: Path,
        dtype: torch.dtype,
        device: torch.device,
        eos_token_ids: tuple[int, ...],
        executor: Executor,
        gate: Gate,
    ) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).eval()
        nn.Module.to(self._model, device)
        self._device = device
        self._eos = frozenset(eos_token_ids)
        self._executor = executor
        self._gate = gate
        self.num_tokens = 0

    async def decode(self, group: PromptGroup, cell: Cell, timeline: Timeline | None) -> Decoded:
        """Draws nothing: it has no rounds.

        Raises ValueError for a temperature other than 0: its sampling is not ours.
        """
        if cell.temperature != 0.0:
            raise ValueError(f"the Hugging Face arm is greedy, got temperature {cell.temperature}")
        loop, begin = asyncio.get_running_loop(), now()
        self.num_tokens = 0
        outputs: list[tuple[int, ...]] = []
        for start in range(0, len(group.prompts), cell.concurrency):
            batch = group.prompts[start : start + cell.concurrency]
            async with self._gate:
                outputs += await loop.run_in_executor(self._executor, self._generate, batch)
            self.num_tokens = sum(map(len, outputs))
        return Decoded(now() - begin, self.num_tokens, tuple(outputs))

    def _generate(self, prompts: tuple[GroupPrompt, ...]) -> list[tuple[int, ...]]:
        longest = max(len(prompt.token_ids) for prompt in prompts)
        input_ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
        mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):
            input_ids[row, longest - len(prompt.token_ids) :] = torch.tensor(prompt.token_ids)
            mask[row, longest - len(prompt.token_ids) :] = 1
        config = GenerationConfig(
            max_new_tokens=max(prompt.max_tokens for prompt in prompts),
            do_sample=False,
            eos_token_id=sorted(self._eos) or None,
            pad_token_id=0,
        )
        with torch.inference_mode():
            output = self._model.generate(
                input_ids.to(self._device), attention_mask=mask.to(self._device), generation_config=config
            )
        rows = output[:, longest:].tolist()
        return [self._cut(row, prompt) for row, prompt in zip(rows, prompts, strict=True)]

    def _cut(self, row: list[int], prompt: GroupPrompt) -> tuple[int, ...]:
        """Without the padding after the first end-of-text token, or what the batch wrote beyond this prompt's own."""
        row = row[: prompt.max_tokens]
        for index, token_id in enumerate(row):
            if token_id in self._eos:
                return tuple(row[: index + 1])
        return tuple(row)
