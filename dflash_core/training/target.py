"""Trains the embedded target: a small, deep Qwen3 on the standard library's source."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from dflash_core.training import corpus, tokenizer
from dflash_core.training.loop import LoopSettings, autocast, train


@dataclass(frozen=True)
class TargetRecipe:
    """What is trained and on how much; the defaults are the embedded target's."""

    vocab_size: int = 4096
    hidden_size: int = 192
    intermediate_size: int = 576
    num_layers: int = 12
    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 32
    max_length: int = 1024
    sequence_length: int = 256
    long_sequence_length: int = 512  # the last steps see longer sequences
    long_fraction: float = 0.15
    tokens_per_micro_batch: int = 2048  # activations that stay in the cache: the fastest of those tried
    micro_batches: int = 4
    steps: int = 540
    learning_rate: float = 4e-3
    seed: int = 0
    compiled: bool = True  # by torch.compile: a minute at the start, 1.3 times the speed

    def config(self) -> Qwen3Config:
        return Qwen3Config(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=self.max_length,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )


def run(recipe: TargetRecipe, files: list[corpus.SourceFile], work: Path, device: torch.device | str = "cpu") -> Path:
    """Trains tokenizer and target on `files` in `work`; returns the folder with the model in bf16."""
    torch.manual_seed(recipe.seed)
    text_tokenizer = _tokenizer(files, recipe, work / "target")
    tokens = _tokens(work / "train.npy", [f for f in files if not f.is_held_out], text_tokenizer)
    held_out = _tokens(work / "held_out.npy", [f for f in files if f.is_held_out], text_tokenizer)
    print(f"corpus: {len(tokens):,} tokens, {len(held_out):,} held out")

    model = Qwen3ForCausalLM(recipe.config())
    nn.Module.to(model, device)
    forward = torch.compile(model, dynamic=False) if recipe.compiled else model
    windows = _Windows(tokens, recipe)

    def loss_of(step: int, micro_batch: int) -> Tensor:
        batch = windows.batch(step, micro_batch).to(device)
        loss: Tensor = forward(input_ids=batch, labels=batch).loss
        return loss

    settings = LoopSettings(recipe.steps, recipe.micro_batches, recipe.learning_rate)
    train(model, loss_of, settings, work / "target.pt", "target")
    loss = held_out_loss(model, held_out, recipe.sequence_length)
    print(f"held-out loss {loss:.4f}")
    folder = work / "target"
    model.bfloat16().save_pretrained(folder)
    (folder / "training.json").write_text(
        json.dumps({"recipe": recipe.__dict__, "train_tokens": len(tokens), "held_out_loss": loss}, indent=2) + "\n"
    )
    return folder


class _Windows:
    """Windows of the token stream in a random order, each seen once before any is seen again."""

    def __init__(self, tokens: npt.NDArray[np.uint16], recipe: TargetRecipe) -> None:
        self._tokens = tokens
        self._recipe = recipe
        self._long_from = int(recipe.steps * (1 - recipe.long_fraction))

    def batch(self, step: int, micro_batch: int) -> Tensor:
        """`[num_sequences, length]` token ids."""
        recipe = self._recipe
        length = recipe.long_sequence_length if step >= self._long_from else recipe.sequence_length
        num_windows = len(self._tokens) // length - 1
        count = recipe.tokens_per_micro_batch // length
        first = (step * recipe.micro_batches + micro_batch) * count
        epoch = first // num_windows
        rng = np.random.default_rng([recipe.seed, length, epoch])
        order, offset = rng.permutation(num_windows), int(rng.integers(length))
        picked = order[np.arange(first, first + count) % num_windows]
        rows = [self._tokens[offset + w * length : offset + (w + 1) * length] for w in picked]
        return torch.from_numpy(np.stack(rows).astype(np.int64))


@torch.no_grad()
def held_out_loss(model: Qwen3ForCausalLM, tokens: npt.NDArray[np.uint16], length: int, most: int = 400) -> float:
    """Mean cross-entropy per token, in nats, over at most `most` evenly spaced windows."""
    num_windows = len(tokens) // length
    picked = np.linspace(0, num_windows - 1, min(most, num_windows)).astype(int)
    losses = []
    for w in picked:
        batch = torch.from_numpy(tokens[w * length : (w + 1) * length].astype(np.int64))[None].to(model.device)
        with autocast(model.device):
            losses.append(float(model(input_ids=batch, labels=batch).loss))
    return float(np.mean(losses))


def _tokenizer(files: list[corpus.SourceFile], recipe: TargetRecipe, folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if path.exists():
        return Tokenizer.from_file(str(path))
    trained = tokenizer.train((f.text() for f in files if not f.is_held_out), recipe.vocab_size)
    tokenizer.save(trained, folder, recipe.max_length)
    return trained


def _tokens(path: Path, files: list[corpus.SourceFile], text_tokenizer: Tokenizer) -> npt.NDArray[np.uint16]:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, corpus.encode(files, text_tokenizer))
    tokens: npt.NDArray[np.uint16] = np.load(path)
    return tokens
