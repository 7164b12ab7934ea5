"""A target and its drafter, trained on the standard library's source and kept in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks.device import free_memory
from dflash_core.errors import InvalidSettings
from dflash_core.models.drafter_config import default_target_layer_ids
from dflash_core.training import continuations, corpus, drafter, target
from dflash_core.training.continuations import ContinuationRecipe
from dflash_core.training.drafter import DrafterRecipe
from dflash_core.training.target import TargetRecipe

_NUM_CAPTURED = 5  # target layers that the drafter reads, by the rule of published drafters
_RECIPE = "pair.json"


@dataclass(frozen=True)
class PairRecipe:
    """All that decides what is trained."""

    target: TargetRecipe
    continuations: ContinuationRecipe
    drafter: DrafterRecipe
    num_files: int | None = None  # of the library, and a quarter as many that are held out; None: all

    @property
    def num_parameters(self) -> int:
        """Of the target."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self.target.config())
        return sum(weight.numel() for weight in model.parameters())

    def resized(
        self,
        *,
        hidden_size: int,
        num_layers: int,
        num_draft_layers: int,
        draft_block_size: int,
        target_steps: int,
        drafter_steps: int,
    ) -> PairRecipe:
        """Heads and MLPs grow with the width. Raises `InvalidSettings` for a width that is no number of heads."""
        head_dim = self.target.head_dim
        num_heads, rest = divmod(hidden_size, head_dim)
        if rest or num_heads == 0:
            raise InvalidSettings(
                f"hidden_size must be a multiple of {head_dim}, the width of a head, got {hidden_size}"
            )
        ratio = self.target.intermediate_size / self.target.hidden_size
        intermediate_size = round(hidden_size * ratio)
        kv_heads = max(count for count in range(1, max(1, num_heads // 2) + 1) if num_heads % count == 0)
        return replace(
            self,
            target=replace(
                self.target,
                hidden_size=hidden_size,
                intermediate_size=intermediate_size,
                num_layers=num_layers,
                num_heads=num_heads,
                num_kv_heads=kv_heads,
                steps=target_steps,
            ),
            drafter=replace(
                self.drafter,
                draft_block_size=draft_block_size,
                num_layers=num_draft_layers,
                intermediate_size=intermediate_size,
                target_layer_ids=default_target_layer_ids(num_layers, _NUM_CAPTURED),
                steps=drafter_steps,
            ),
        )

    def files(self) -> list[corpus.SourceFile]:
        """Those that training sees, and some that are held out from it."""
        files = corpus.standard_library()
        if self.num_files is None:
            return files
        seen, held_out = ([file for file in files if file.is_held_out is kind] for kind in (False, True))
        return seen[:: len(seen) // self.num_files][: self.num_files] + held_out[: -(-self.num_files // 4)]


LARGE = PairRecipe(
    TargetRecipe(
        vocab_size=8192, hidden_size=768, intermediate_size=2048, num_layers=14, num_heads=12, num_kv_heads=6,
        head_dim=64, sequence_length=512, long_sequence_length=1024, tokens_per_micro_batch=32768, micro_batches=1,
        steps=500, learning_rate=2e-3, compiled=False,
    ),
    ContinuationRecipe(num_batches=20, batch_size=320),
    DrafterRecipe(
        draft_block_size=16, num_layers=3, intermediate_size=2048,
        target_layer_ids=default_target_layer_ids(14, _NUM_CAPTURED), sequences_per_micro_batch=16, micro_batches=2,
        steps=1500, learning_rate=1.5e-3, compiled=False,
    ),
)  # fmt: skip
SMALL = PairRecipe(
    TargetRecipe(
        vocab_size=400, hidden_size=64, intermediate_size=128, num_layers=8, num_heads=2, num_kv_heads=1, head_dim=32,
        max_length=512, sequence_length=64, long_sequence_length=128, tokens_per_micro_batch=512, micro_batches=1,
        steps=20, compiled=False,
    ),
    ContinuationRecipe(num_batches=10, batch_size=2, length=48, shortest_prompt=8, longest_prompt=16),
    DrafterRecipe(
        draft_block_size=6, num_layers=1, intermediate_size=128,
        target_layer_ids=default_target_layer_ids(8, _NUM_CAPTURED), sequences_per_micro_batch=2, micro_batches=1,
        anchors_per_sequence=8, steps=10, compiled=False,
    ),
    num_files=8,
)  # fmt: skip


def trained(recipe: PairRecipe, work: Path, device: torch.device) -> dict[str, Any]:
    """Trains what `work` does not have yet, and returns the two training reports.

    The models are `work / "target"` and `work / "drafter"`. A run that was stopped goes on where it was.
    Raises `InvalidSettings` where the folder holds a pair of another recipe.
    """
    _claim(recipe, work)
    if not (work / "drafter" / "training.json").is_file():
        _train(recipe, work, device)
        free_memory(device)
    reports = {name: json.loads((work / name / "training.json").read_text()) for name in ("target", "drafter")}
    return {"num_parameters": recipe.num_parameters} | reports


def _train(recipe: PairRecipe, work: Path, device: torch.device) -> None:
    if not (work / "target" / "training.json").is_file():
        target.run(recipe.target, recipe.files(), work, device)
        free_memory(device)
    held_out = replace(recipe.continuations, num_batches=2)
    for tokens, shards, wanted in (
        ("train.npy", "continuations", recipe.continuations),
        ("held_out.npy", "held_out_continuations", held_out),
    ):
        continuations.write_shards(work / "target", np.load(work / tokens), work / shards, wanted, device=device)
    drafter.run(
        work / "target",
        continuations.read_shards(work / "continuations", recipe.continuations.num_batches),
        continuations.read_shards(work / "held_out_continuations", held_out.num_batches),
        np.load(work / "train.npy"),
        recipe.drafter,
        work,
        device=device,
    )


def _claim(recipe: PairRecipe, work: Path) -> None:
    """Marks the folder as this recipe's: checkpoints of another one must not be continued."""
    path, wanted = work / _RECIPE, json.loads(json.dumps(asdict(recipe)))
    if path.is_file():
        differences = list(_differences(json.loads(path.read_text()), wanted))
        if differences:
            raise InvalidSettings(f"{work} holds a pair of another recipe ({differences[0]}): name another folder")
        return
    work.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(wanted, indent=1) + "\n")


def _differences(there: dict[str, Any], wanted: dict[str, Any], name: str = "") -> Iterator[str]:
    for key in sorted(there.keys() | wanted.keys()):
        old, new = there.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{name}{key}.")
        elif old != new:
            yield f"{name}{key} is {old} there and {new} here"
