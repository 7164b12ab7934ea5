"""Loads a target from a local folder; never runs code that came with the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from dflash_core.attention.registration import PAGED_TREE, register_paged_tree
from dflash_core.errors import CheckpointMismatch, CheckpointNotFound, UnsupportedModel
from dflash_core.models.target_support import check_supported


def load_target(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The causal language model in `folder`, in evaluation mode.

    Raises `CheckpointNotFound`, `UnsupportedModel`, or `CheckpointMismatch` for missing or misshapen tensors.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointNotFound(f"the target has no config.json: {folder / 'config.json'}")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        model_type = json.loads((folder / "config.json").read_text()).get("model_type")
        raise UnsupportedModel(
            f"transformers itself cannot read the config in {folder}, of model type {model_type!r} (code that comes "
            "with a checkpoint is never run)"
        ) from error
    check_supported(config)
    register_paged_tree()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=PAGED_TREE,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except OSError as error:
        raise CheckpointNotFound(f"the target in {folder} has no readable weights: {error}") from error
    except RuntimeError as error:
        raise CheckpointMismatch(f"the weights in {folder} do not match its config: {error}") from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise CheckpointMismatch(f"the target in {folder} lacks tensors that its config needs: {', '.join(missing)}")
    placed: PreTrainedModel = model.to(device).eval()
    return placed


def tokenizer_size(folder: Path, vocab_size: int) -> int:
    """Ids that the tokenizer knows; those from there to the model's `vocab_size` are padding and never sampled.

    A folder without `tokenizer.json` pads nothing.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return vocab_size
    ids = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True).values()
    return min(vocab_size, max(ids) + 1)
