"""Loads a pair and its tokenizer into this process. The only module of `cluster` that brings torch."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Tokenizer

from cluster.transports.runner_protocols import DrafterModelRunner, TargetModelRunner
from dflash_core.errors import CheckpointNotFound
from dflash_core.models.checkpoints import resolve_checkpoint
from dflash_core.runners.drafter import DrafterRunner
from dflash_core.runners.settings import DrafterSettings, TargetSettings
from dflash_core.runners.target import TargetRunner


@dataclass(frozen=True, slots=True)
class LoadedPair:
    target: TargetModelRunner
    drafter: DrafterModelRunner | None  # None: plain decoding
    tokenizer: Tokenizer


def load_pair(
    target: str, drafter: str | None, target_settings: TargetSettings, drafter_settings: DrafterSettings
) -> LoadedPair:
    """Raises `CheckpointNotFound`, `CheckpointMismatch`, `UnsupportedModel`, or `InvalidSettings`."""
    tokenizer = load_tokenizer(target)
    target_runner = TargetRunner.load(target, drafter, target_settings)
    drafter_runner = None if drafter is None else DrafterRunner.load(drafter, target, drafter_settings)
    return LoadedPair(target_runner, drafter_runner, tokenizer)


def load_tokenizer(target: str) -> Tokenizer:
    """The target's `tokenizer.json`. Raises `CheckpointNotFound`."""
    path = resolve_checkpoint(target) / "tokenizer.json"
    if not path.is_file():
        raise CheckpointNotFound(f"the target has no tokenizer.json: {path}")
    tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    return tokenizer
