"""Trains a DFlash drafter for a target (arXiv 2602.06036, section 4), on what the target itself writes.

Per sequence, random anchors: the block [token at the anchor, MASK, …] sees the context features of the positions
before its anchor and itself. Three departures from the paper, all because a drafter is judged by decoding:
- most sequences are the target's own continuations, and anchors lie where the target wrote;
- on sampled text and on the corpus, the label is the target's whole next-token distribution, not the one token that
  happened to follow: the same expectation with less noise. Greedy continuations keep their tokens as labels;
- slots and roots weigh as much as they matter for the number of rounds (`round_weights`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from dflash_core.models.drafter import DFlashDrafter
from dflash_core.models.drafter_config import DrafterConfig, LayerAttention
from dflash_core.models.drafter_files import load_drafter, save_drafter
from dflash_core.training.acceptance import decoded_acceptance_length
from dflash_core.training.block_loss import BlockLoss, target_states
from dflash_core.training.continuations import Continuations
from dflash_core.training.loop import LoopSettings, autocast, train

_TARGET_BATCH = {"cpu": 8, "cuda": 64}  # sequences of one target pass; on a CPU activations that stay in the cache


@dataclass(frozen=True)
class DrafterRecipe:
    """The drafter's shape and its training; the defaults are the embedded drafter's."""

    draft_block_size: int = 8
    num_layers: int = 2
    intermediate_size: int = 1152  # of the MLP
    target_layer_ids: tuple[int, ...] = (2, 5, 8, 10)
    mask_token_id: int = 1
    sequences_per_micro_batch: int = 4
    micro_batches: int = 4
    anchors_per_sequence: int = 48
    corpus_fraction: float = 0.05  # the rest are continuations
    steps: int = 3000
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

    What the target computed is kept in bfloat16 on its device: `length · (num_captured + 1) · hidden · 2` bytes a
    sequence.
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
        self._token_ids = torch.from_numpy(rows.astype(np.int64)).to(target.device)
        # The target wrote from prompt_len on: that is where its roots stand.
        self._first_root = np.concatenate([continuations.prompt_lens, np.ones(num_corpus, dtype=np.int32)])
        is_greedy = np.concatenate([continuations.is_greedy, np.zeros(num_corpus, dtype=np.bool_)])
        self._is_greedy = torch.from_numpy(is_greedy).to(target.device)
        self._states = _target_states(target, self._token_ids, recipe.target_layer_ids)

    def __len__(self) -> int:
        return len(self._token_ids)

    def batch(self, step: int, micro_batch: int) -> Batch:
        recipe, count = self._recipe, self._recipe.sequences_per_micro_batch
        first = (step * recipe.micro_batches + micro_batch) * count
        rng = np.random.default_rng([recipe.seed, 1, step, micro_batch])
        picked = self._order(first // len(self))[np.arange(first, first + count) % len(self)]
        anchors = [_anchors(rng, int(self._first_root[i]), self._length, recipe.anchors_per_sequence) for i in picked]
        rows = torch.from_numpy(picked).to(self._states.device)
        states = self._states[rows].float()
        hidden_size = states.shape[-1] // (len(recipe.target_layer_ids) + 1)
        return Batch(
            token_ids=self._token_ids[rows],
            anchors=torch.from_numpy(np.stack(anchors)).to(rows.device),
            is_greedy=self._is_greedy[rows],
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
    count = _TARGET_BATCH[target.device.type]
    for first in track(range(0, len(token_ids), count), description="target states"):
        with autocast(target.device):
            part = target_states(target, token_ids[first : first + count], layer_ids).bfloat16()
        if states is None:
            states = torch.empty(len(token_ids), *part.shape[1:], dtype=torch.bfloat16, device=part.device)
        states[first : first + len(part)] = part
    if states is None:
        raise ValueError("there are no sequences to train on")
    return states


def drafter_config(target: PreTrainedModel, recipe: DrafterRecipe) -> DrafterConfig:
    """A drafter of the target's own width."""
    config = target.config
    return DrafterConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=recipe.intermediate_size,
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
    start: Path | None = None,
    device: torch.device | str = "cpu",
) -> Path:
    """Trains in `work`, resuming where it stopped; returns the folder with the finished drafter.

    It starts from the drafter in the folder `start`, or else from the target's last layers.
    """
    torch.manual_seed(recipe.seed)
    target = AutoModelForCausalLM.from_pretrained(target_folder, dtype=torch.float32)
    drafter = DFlashDrafter(drafter_config(target, recipe))
    if start is None:
        decoder = target.get_decoder()
        start_from(drafter, decoder.layers[-len(drafter.layers) :], decoder.norm)
    else:
        trained = load_drafter(start)
        start_from(drafter, trained.layers, trained.norm)
        drafter.fc.load_state_dict(trained.fc.state_dict())
        drafter.hidden_norm.load_state_dict(trained.hidden_norm.state_dict())
    block_loss = BlockLoss(target, drafter).to(device)
    forward = torch.compile(block_loss, dynamic=False) if recipe.compiled else block_loss
    sequences = Sequences(target, continuations, corpus, recipe)

    def loss_of(step: int, micro_batch: int) -> Tensor:
        batch = sequences.batch(step, micro_batch)
        loss: Tensor = forward(batch.token_ids, batch.anchors, batch.is_greedy, batch.raw_features, batch.final_hidden)
        return loss

    settings = LoopSettings(recipe.steps, recipe.micro_batches, recipe.learning_rate)
    train(block_loss, loss_of, settings, work / "drafter.pt", "drafter")
    acceptance = decoded_acceptance_length(block_loss, held_out)
    print(f"held-out greedy chain acceptance length: {acceptance:.3f}")
    folder = work / "drafter"
    save_drafter(drafter, folder)
    report = {"recipe": asdict(recipe), "sequences": len(continuations.token_ids), "held_out_acceptance": acceptance}
    (folder / "training.json").write_text(json.dumps(report, indent=2) + "\n")
    return folder


def start_from(drafter: DFlashDrafter, layers: Iterable[nn.Module], norm: nn.Module) -> None:
    """Copies trained decoder layers and their final norm, whose output the head can already read.

    Where the drafter's MLP is wider than theirs, what is new starts at random and adds nothing at first.
    """
    for layer, source in zip(drafter.layers, layers, strict=True):
        wanted = layer.state_dict()
        for name, tensor in source.state_dict().items():
            if tensor.shape != wanted[name].shape:
                narrow, tensor = tensor, wanted[name]
                if narrow.shape[0] == tensor.shape[0]:
                    tensor[:, narrow.shape[1] :] = 0.0
                tensor[: narrow.shape[0], : narrow.shape[1]] = narrow
            wanted[name] = tensor
        layer.load_state_dict(wanted)
    drafter.norm.load_state_dict(norm.state_dict())
