"""Trains a DFlash drafter for a target (arXiv 2602.06036, section 4), on what the target itself writes.

Per sequence, random anchors: the block [token at the anchor, MASK, …] sees the context features of the positions
before its anchor and itself. Two departures from the paper, both because a drafter is judged by decoding:
- most sequences are the target's own continuations, and anchors lie where the target wrote;
- on sampled text and on the corpus, the label is the target's whole next-token distribution, not the one token that
  happened to follow: the same expectation with less noise. Greedy continuations keep their tokens as labels.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from dflash_core.models.drafter import DFlashDrafter
from dflash_core.models.drafter_config import DrafterConfig, LayerAttention
from dflash_core.models.drafter_files import save_drafter
from dflash_core.training.continuations import Continuations
from dflash_core.training.loop import LoopSettings, train

_TARGET_BATCH = 8  # sequences of one target pass: activations that stay in the cache


@dataclass(frozen=True)
class DrafterRecipe:
    """The drafter's shape and its training; the defaults are the embedded drafter's."""

    draft_block_size: int = 8
    num_layers: int = 2
    target_layer_ids: tuple[int, ...] = (2, 5, 8, 10)
    mask_token_id: int = 1
    sequences_per_micro_batch: int = 4
    micro_batches: int = 4
    anchors_per_sequence: int = 48
    corpus_fraction: float = 0.1  # the rest are continuations
    gamma: float = 4.0  # slot k weighs exp(−(k − 1) / gamma)
    steps: int = 800
    learning_rate: float = 3e-3
    seed: int = 0
    compiled: bool = True  # by torch.compile: a minute at the start


@dataclass(frozen=True)
class Batch:
    """Sequences with the roots' positions in them, and what the target thinks of them."""

    token_ids: Tensor  # [batch, length] int64
    anchors: Tensor  # [batch, num_anchors] int64
    is_greedy: Tensor  # [batch] bool
    raw_features: Tensor  # [batch, length, num_captured · hidden] outputs of the captured layers
    final_hidden: Tensor  # [batch, length, hidden] what the target's head reads


class Sequences:
    """Continuations and corpus windows; the target reads each once, and batches draw new anchors from it.

    What the target computed is kept in bfloat16: `length · (num_captured + 1) · hidden · 2` bytes a sequence.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        continuations: Continuations,
        corpus: npt.NDArray[np.uint16],
        recipe: DrafterRecipe,
    ) -> None:
        self._recipe = recipe
        num_written, self._length = continuations.token_ids.shape
        num_corpus = round(num_written * recipe.corpus_fraction / (1 - recipe.corpus_fraction))
        starts = np.random.default_rng([recipe.seed, 0]).integers(0, len(corpus) - self._length, num_corpus)
        windows = np.stack([corpus[s : s + self._length] for s in starts]) if num_corpus else corpus[:0].reshape(0, 1)
        rows = np.concatenate([continuations.token_ids, windows.reshape(num_corpus, self._length)])
        self._token_ids = torch.from_numpy(rows.astype(np.int64))
        # The target wrote from prompt_len on: that is where its roots stand.
        self._first_root = np.concatenate([continuations.prompt_lens, np.ones(num_corpus, dtype=np.int32)])
        is_greedy = np.concatenate([continuations.is_greedy, np.zeros(num_corpus, dtype=np.bool_)])
        self._is_greedy = torch.from_numpy(is_greedy)
        self._states = _target_states(target, self._token_ids, recipe.target_layer_ids)

    def __len__(self) -> int:
        return len(self._token_ids)

    def batch(self, step: int, micro_batch: int) -> Batch:
        recipe, count = self._recipe, self._recipe.sequences_per_micro_batch
        first = (step * recipe.micro_batches + micro_batch) * count
        rng = np.random.default_rng([recipe.seed, 1, step, micro_batch])
        picked = self._order(first // len(self))[np.arange(first, first + count) % len(self)]
        anchors = [_anchors(rng, int(self._first_root[i]), self._length, recipe.anchors_per_sequence) for i in picked]
        states = self._states[torch.from_numpy(picked)].float()
        hidden_size = states.shape[-1] // (len(recipe.target_layer_ids) + 1)
        return Batch(
            token_ids=self._token_ids[picked],
            anchors=torch.from_numpy(np.stack(anchors)),
            is_greedy=self._is_greedy[picked],
            raw_features=states[..., :-hidden_size],
            final_hidden=states[..., -hidden_size:],
        )

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng([self._recipe.seed, 2, epoch]).permutation(len(self))


def _anchors(rng: np.random.Generator, first: int, length: int, count: int) -> npt.NDArray[np.int64]:
    """`count` root positions in [first, length − 1), distinct where there are enough."""
    choices = length - 1 - first
    return np.sort(first + rng.choice(choices, count, replace=choices < count)).astype(np.int64)


@torch.inference_mode()
def _target_states(target: PreTrainedModel, token_ids: Tensor, layer_ids: tuple[int, ...]) -> Tensor:
    """`[num_sequences, length, (num_captured + 1) · hidden]` bfloat16: the captured layers, then the final states."""
    states: Tensor | None = None
    for first in track(range(0, len(token_ids), _TARGET_BATCH), description="target states"):
        part = target_states(target, token_ids[first : first + _TARGET_BATCH], layer_ids).bfloat16()
        if states is None:
            states = torch.empty(len(token_ids), *part.shape[1:], dtype=torch.bfloat16)
        states[first : first + len(part)] = part
    if states is None:
        raise ValueError("there are no sequences to train on")
    return states


def target_states(target: PreTrainedModel, token_ids: Tensor, layer_ids: tuple[int, ...]) -> Tensor:
    """As the target computes them: `[batch, length, (num_captured + 1) · hidden]`."""
    output = target(input_ids=token_ids, output_hidden_states=True, use_cache=False, logits_to_keep=1)
    return torch.cat([*(output.hidden_states[i + 1] for i in layer_ids), output.hidden_states[-1]], -1)


class BlockLoss(nn.Module):
    """Target and drafter together: the drafter's loss on a batch. The target is frozen."""

    slot_weights: Tensor  # [depth]

    def __init__(self, target: PreTrainedModel, drafter: DFlashDrafter, gamma: float) -> None:
        super().__init__()
        self.target = target.requires_grad_(False).eval()
        self.drafter = drafter
        depth = torch.arange(drafter.config.depth)
        self.register_buffer("slot_weights", torch.exp(-depth / gamma), persistent=False)

    def forward(
        self, token_ids: Tensor, anchors: Tensor, is_greedy: Tensor, raw_features: Tensor, final_hidden: Tensor
    ) -> Tensor:
        """The mean loss of a `Batch`'s predicted slots, weighted by slot."""
        logits = self.draft_logits(token_ids, anchors, raw_features)  # [batch, anchors, depth, vocab]
        positions, inside = self._predicted_positions(anchors, token_ids.shape[1])
        rows = torch.arange(len(token_ids), device=token_ids.device)[:, None, None]
        written = F.cross_entropy(logits.flatten(0, 2), token_ids[rows, positions].flatten(), reduction="none")
        with torch.no_grad():
            target_probs = self.target.get_output_embeddings()(final_hidden).softmax(-1)[rows, positions - 1]
        expected = torch.logsumexp(logits, -1) - (target_probs * logits).sum(-1)
        loss = torch.where(is_greedy[:, None, None], written.view_as(expected), expected)
        weights = inside * self.slot_weights
        return (loss * weights).sum() / weights.sum()

    def draft_logits(self, token_ids: Tensor, anchors: Tensor, raw_features: Tensor) -> Tensor:
        """`[batch, num_anchors, depth, vocab]` of the blocks at the anchors."""
        config = self.drafter.config
        batch, num_anchors = anchors.shape
        length, size = token_ids.shape[1], config.draft_block_size
        context = self.drafter.project_context(raw_features)  # [batch, length, hidden]
        context_kv = self.drafter.context_kv(context, torch.arange(length, device=token_ids.device)[None])
        slots = torch.arange(size, device=token_ids.device)
        positions = (anchors[..., None] + slots).flatten(1)  # [batch, rows]
        block = torch.full((batch, num_anchors, size), config.mask_token_id, device=token_ids.device)
        block[..., 0] = token_ids.gather(1, anchors)
        visible = self._visible(anchors, length)

        def attend(layer_idx: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            context_key, context_value = context_kv[layer_idx]
            keys = torch.cat([context_key, key], 1).transpose(1, 2)
            values = torch.cat([context_value, value], 1).transpose(1, 2)
            output = F.scaled_dot_product_attention(
                query.transpose(1, 2), keys, values, attn_mask=visible, enable_gqa=True
            )
            return output.transpose(1, 2)

        embeds = self.target.get_input_embeddings()(block.flatten(1))
        hidden = self.drafter(embeds, positions, attend).view(batch, num_anchors, size, -1)
        logits: Tensor = self.target.get_output_embeddings()(hidden[:, :, 1:])
        return logits

    def _predicted_positions(self, anchors: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Positions `[batch, anchors, depth]` that slots 1, 2, … predict, and which lie inside the sequence."""
        depth = torch.arange(1, self.drafter.config.draft_block_size, device=anchors.device)
        positions = anchors[..., None] + depth
        return positions.clamp(max=length - 1), positions < length

    def _visible(self, anchors: Tensor, length: int) -> Tensor:
        """`[batch, 1, rows, length + rows]`: the context strictly before the anchor, and the row's own block."""
        size = self.drafter.config.draft_block_size
        of_row = anchors.repeat_interleave(size, 1)  # [batch, rows]
        context = torch.arange(length, device=anchors.device)[None, None] < of_row[..., None]
        block = torch.arange(of_row.shape[1], device=anchors.device) // size
        same = (block[:, None] == block[None]).expand(len(anchors), -1, -1)
        return torch.cat([context, same], -1)[:, None]

    @torch.no_grad()
    def chain_acceptance_length(self, token_ids: Tensor, anchors: Tensor) -> Tensor:
        """`[batch, anchors]` tokens per round of a greedy chain at these roots, on greedy continuations:
        the drafted tokens up to the first that the target did not write, and the bonus token."""
        layer_ids = self.drafter.config.target_layer_ids
        raw_features = target_states(self.target, token_ids, layer_ids)[..., : -self.drafter.config.hidden_size]
        drafted = self.draft_logits(token_ids, anchors, raw_features).argmax(-1)
        positions, inside = self._predicted_positions(anchors, token_ids.shape[1])
        written = token_ids[torch.arange(len(token_ids))[:, None, None], positions]
        return ((drafted == written) & inside).cumprod(-1).sum(-1) + 1


def drafter_config(target: PreTrainedModel, recipe: DrafterRecipe) -> DrafterConfig:
    """A drafter of the target's own width."""
    config = target.config
    return DrafterConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        draft_block_size=recipe.draft_block_size,
        num_target_layers=config.num_hidden_layers,
        target_layer_ids=recipe.target_layer_ids,
        mask_token_id=recipe.mask_token_id,
        layers=(LayerAttention(sliding_window=None, is_causal=False),) * recipe.num_layers,
        rope_parameters=dict(config.rope_parameters),
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
    )


def run(
    target_folder: Path,
    continuations: Continuations,
    held_out: Continuations,
    corpus: npt.NDArray[np.uint16],
    recipe: DrafterRecipe,
    work: Path,
) -> Path:
    """Trains in `work`, resuming where it stopped; returns the folder with the finished drafter."""
    torch.manual_seed(recipe.seed)
    target = AutoModelForCausalLM.from_pretrained(target_folder, dtype=torch.float32)
    drafter = DFlashDrafter(drafter_config(target, recipe))
    _start_from_target(drafter, target)
    block_loss = BlockLoss(target, drafter, recipe.gamma)
    forward = torch.compile(block_loss, dynamic=False) if recipe.compiled else block_loss
    sequences = Sequences(target, continuations, corpus, recipe)

    def loss_of(step: int, micro_batch: int) -> Tensor:
        batch = sequences.batch(step, micro_batch)
        loss: Tensor = forward(batch.token_ids, batch.anchors, batch.is_greedy, batch.raw_features, batch.final_hidden)
        return loss

    settings = LoopSettings(recipe.steps, recipe.micro_batches, recipe.learning_rate)
    train(block_loss, loss_of, settings, work / "drafter.pt", "drafter")
    acceptance = held_out_acceptance(block_loss, held_out)
    print(f"held-out greedy chain acceptance length, teacher-forced: {acceptance:.3f}")
    folder = work / "drafter"
    save_drafter(drafter, folder)
    report = {"recipe": asdict(recipe), "sequences": len(continuations.token_ids), "held_out_acceptance": acceptance}
    (folder / "training.json").write_text(json.dumps(report, indent=2) + "\n")
    return folder


def held_out_acceptance(block_loss: BlockLoss, held_out: Continuations) -> float:
    """Mean greedy chain acceptance length over the roots of greedy held-out continuations that see a whole block."""
    size = block_loss.drafter.config.draft_block_size
    lengths = []
    for row, prompt_len in zip(
        held_out.token_ids[held_out.is_greedy], held_out.prompt_lens[held_out.is_greedy], strict=True
    ):
        anchors = torch.arange(int(prompt_len), len(row) - size + 1)[None]
        lengths.append(block_loss.chain_acceptance_length(torch.from_numpy(row.astype(np.int64))[None], anchors))
    return float(torch.cat([length.flatten() for length in lengths]).float().mean())


def _start_from_target(drafter: DFlashDrafter, target: PreTrainedModel) -> None:
    """Copies the target's last layers and final norm: the head already reads what they write."""
    decoder = target.get_decoder()
    for layer, source in zip(drafter.layers, decoder.layers[-len(drafter.layers) :], strict=True):
        layer.load_state_dict(source.state_dict())
    drafter.norm.load_state_dict(decoder.norm.state_dict())
