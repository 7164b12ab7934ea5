"""A random target and drafter small enough for tests, saved in the layouts of ARCHITECTURE section 6.

Random, but not strangers: all token embeddings share one direction, which dominates what the target's head reads, and
the mask's embedding is the mean of that. So greedy output wanders among a few tokens, the drafter nearly always has
the right one among its first eight and often first: tests meet both acceptance and rejection. (With tied embeddings
the target repeats one token, which the drafter does not know.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from dflash_core.models.drafter import DFlashDrafter
from dflash_core.models.drafter_config import DrafterConfig, LayerAttention
from dflash_core.models.drafter_files import save_drafter
from dflash_core.training import tokenizer

END_OF_TEXT_ID, MASK_ID = 0, 1
_TEXT = """
def add(left, right):
    return left + right


class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        return self.items.pop()
"""  # what the tokenizer is trained on


@dataclass(frozen=True)
class TinySettings:
    """Of a tiny pair. `target_layer_ids` and `draft_layers` have one entry per captured and per draft layer."""

    vocab_size: int = 300
    hidden_size: int = 32
    intermediate_size: int = 64
    num_layers: int = 3
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 8
    max_length: int = 512
    tie_word_embeddings: bool = False
    draft_block_size: int = 5
    target_layer_ids: tuple[int, ...] = (0, 2)
    draft_layers: tuple[LayerAttention, ...] = (LayerAttention(None, False),) * 2
    agreement: float = 0.5  # weight of the shared direction; 0: the drafter is right by accident alone
    drafter_noise: float = 0.2  # scale of what the drafter's own layers add


@dataclass(frozen=True)
class TinyPair:
    """Folders of the two, and the settings they were made with. The tokenizer is in the target's folder."""

    target: Path
    drafter: Path
    settings: TinySettings


def make_tiny_pair(folder: Path, seed: int = 0, **overrides: Any) -> TinyPair:
    """Saves a target, its tokenizer and a drafter under `folder`; `overrides` are fields of `TinySettings`."""
    settings = replace(TinySettings(), **overrides)
    assert settings.vocab_size >= 258, "the tokenizer has an id for each byte and two special ones"
    pair = TinyPair(folder / "target", folder / "drafter", settings)
    # A generator of its own: making a pair leaves the caller's random state alone.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        target, drafter = _target(settings), _drafter(settings)
        _acquaint(target, drafter, settings)
        target.to(torch.bfloat16).save_pretrained(pair.target)
        save_drafter(drafter, pair.drafter)
    tokenizer.save(tokenizer.train([_TEXT], settings.vocab_size), pair.target, settings.max_length)
    return pair


def _target(settings: TinySettings) -> Qwen3ForCausalLM:
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=settings.vocab_size,
            hidden_size=settings.hidden_size,
            intermediate_size=settings.intermediate_size,
            num_hidden_layers=settings.num_layers,
            num_attention_heads=settings.num_heads,
            num_key_value_heads=settings.num_kv_heads,
            head_dim=settings.head_dim,
            max_position_embeddings=settings.max_length,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=settings.tie_word_embeddings,
            bos_token_id=None,
            eos_token_id=END_OF_TEXT_ID,
            pad_token_id=END_OF_TEXT_ID,
        )
    )
    _randomize(model, layer_scale=1.0)
    return model.eval()


def _drafter(settings: TinySettings) -> DFlashDrafter:
    model = DFlashDrafter(
        DrafterConfig(
            vocab_size=settings.vocab_size,
            hidden_size=settings.hidden_size,
            intermediate_size=settings.intermediate_size,
            num_heads=settings.num_heads,
            num_kv_heads=settings.num_kv_heads,
            head_dim=settings.head_dim,
            draft_block_size=settings.draft_block_size,
            num_target_layers=settings.num_layers,
            target_layer_ids=settings.target_layer_ids,
            mask_token_id=MASK_ID,
            layers=settings.draft_layers,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            max_position_embeddings=settings.max_length,
        )
    )
    _randomize(model, layer_scale=settings.drafter_noise)
    return model.eval()


def _acquaint(target: Qwen3ForCausalLM, drafter: DFlashDrafter, settings: TinySettings) -> None:
    """The mask's embedding becomes the mean of what the target's head reads: a drafter without layers would draft the
    target's unigram distribution, and the drafter's own layers perturb that."""
    embedding, head = target.model.embed_tokens.weight, target.lm_head.weight
    embedding += settings.agreement * torch.randn(settings.hidden_size)
    head[[END_OF_TEXT_ID, MASK_ID]] = 0.0  # neither is chosen: outputs reach their wanted length
    read: list[torch.Tensor] = []
    hook = target.model.norm.register_forward_hook(lambda _module, args, _output: read.append(args[0]))
    target(input_ids=torch.randint(2, settings.vocab_size, (4, 64)))
    hook.remove()
    mean = read[0].mean((0, 1))
    # With tied embeddings this row is also the mask's head: a small one is never chosen.
    embedding[MASK_ID] = 0.5 * mean / mean.norm() if settings.tie_word_embeddings else mean
    drafter.norm.weight.copy_(target.model.norm.weight)


def _randomize(model: nn.Module, layer_scale: float) -> None:
    """Norms that are not all ones, and matrices large enough that every input matters."""
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            weight.copy_(1.0 + 0.1 * torch.randn_like(weight))
        elif "embed_tokens" in name or "lm_head" in name:
            weight.copy_(0.4 * torch.randn_like(weight))
        else:
            scale = layer_scale if "o_proj" in name or "down_proj" in name else 1.0
            weight.copy_(scale * torch.randn_like(weight) * weight.shape[1] ** -0.5)
