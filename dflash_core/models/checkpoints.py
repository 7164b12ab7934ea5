"""Where checkpoints lie, and whether a drafter and a target belong together. Imports no torch.

`resolve_checkpoint` turns a name into a folder, `TargetConfig` says what a drafter must know of its target,
`check_pair` compares the two.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dflash_core.embedded import DRAFTER_NAME, PREFIX, TARGET_NAME, embedded_folder
from dflash_core.errors import CheckpointMismatch, CheckpointNotFound, UnsupportedModel
from dflash_core.models.drafter_config import DrafterConfig

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
# Weights, configs, tokenizer and chat template; no pickles, no code.
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
# Models that scale embeddings or logits in ways of their own: a drafter would be wrong without a word.
_SCALING_KEYS = ("embedding_multiplier", "logits_scaling", "logit_scale", "scale_emb", "dim_model_base")
_GEMMA = ("gemma", "gemma2", "gemma3", "gemma3_text")


def resolve_checkpoint(name_or_path: str) -> Path:
    """The folder of a checkpoint: "embedded:…", a local folder, or a Hugging Face name.

    A Hugging Face name is downloaded unless it is in the local cache; with `HF_HUB_OFFLINE=1` only the cache is used.
    Raises `CheckpointNotFound` naming the place that was looked at.
    """
    if name_or_path.startswith(PREFIX):
        embedded = embedded_folder(name_or_path)
        if embedded is None:
            raise CheckpointNotFound(f"no embedded model {name_or_path!r}; there are {TARGET_NAME} and {DRAFTER_NAME}")
        return _with_config(embedded, name_or_path)
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return _with_config(folder, name_or_path)
    if not _HUB_NAME.fullmatch(name_or_path):
        raise CheckpointNotFound(f"no checkpoint at {folder.absolute()}: the folder does not exist")
    return _from_hub(name_or_path)


@dataclass(frozen=True, slots=True)
class TargetConfig:
    """What a drafter must know of its target's config."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    ties_embeddings: bool | None  # None: not said; then the head is tied where the weights hold none
    embedding_scale: float  # embeddings are multiplied by it
    logit_softcap: float | None  # logits become softcap · tanh(logits / softcap)

    @classmethod
    def load(cls, folder: Path) -> TargetConfig:
        """Reads `folder/config.json`. Raises `CheckpointNotFound`, `CheckpointMismatch`, `UnsupportedModel`."""
        path = folder / "config.json"
        if not path.is_file():
            raise CheckpointNotFound(f"the target has no config.json: {path}")
        return cls.from_json(json.loads(path.read_text()))

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> TargetConfig:
        text = raw.get("text_config") or raw  # the language model of a multimodal checkpoint
        model_type = text.get("model_type", "")
        if odd := [key for key in _SCALING_KEYS if text.get(key) not in (None, 1, 1.0)]:
            raise UnsupportedModel(
                f"targets of type {model_type!r} scale embeddings or logits ({', '.join(odd)}), which drafters here"
                " do not do"
            )
        sizes = {key: text.get(key) for key in ("vocab_size", "hidden_size", "num_hidden_layers")}
        if absent := [key for key, value in sizes.items() if not isinstance(value, int)]:
            raise CheckpointMismatch(f"the target's config has no {', '.join(absent)}")
        return cls(
            model_type=model_type,
            vocab_size=text["vocab_size"],
            hidden_size=text["hidden_size"],
            num_layers=text["num_hidden_layers"],
            ties_embeddings=raw.get("tie_word_embeddings", text.get("tie_word_embeddings")),
            embedding_scale=float(text["hidden_size"]) ** 0.5 if model_type in _GEMMA else 1.0,
            logit_softcap=text.get("final_logit_softcapping", 30.0 if model_type == "gemma2" else None),
        )


def check_pair(target: TargetConfig, drafter: DrafterConfig) -> None:
    """Raises `CheckpointMismatch`, with both values of all that differs, unless the drafter fits the target."""
    faults = [
        f"{what}: the drafter says {of_drafter}, the target has {of_target}"
        for what, of_drafter, of_target in (
            ("num_target_layers", drafter.num_target_layers, target.num_layers),
            ("hidden_size", drafter.hidden_size, target.hidden_size),
            ("vocab_size", drafter.vocab_size, target.vocab_size),
        )
        if of_drafter != of_target
    ]
    if max(drafter.target_layer_ids) >= target.num_layers:
        faults.append(
            f"target_layer_ids: the drafter reads layer {max(drafter.target_layer_ids)}, the target's last is"
            f" {target.num_layers - 1}"
        )
    if faults:
        raise CheckpointMismatch(f"drafter and target do not belong together: {'; '.join(faults)}")


def _with_config(folder: Path, name: str) -> Path:
    if not (folder / "config.json").is_file():
        raise CheckpointNotFound(f"checkpoint {name!r}: no config.json in {folder.absolute()}")
    return folder


def _from_hub(name: str) -> Path:
    # Imported here: a server of local checkpoints needs no HTTP client.
    from huggingface_hub import constants, snapshot_download

    try:
        folder = snapshot_download(name, allow_patterns=_HUB_FILES)
    except Exception as error:  # HTTP, proxy, cache or name: the hub's client has no common base for them
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointNotFound(
            f"checkpoint {name!r} is no folder ({os.path.abspath(name)}), not in the Hugging Face cache"
            f" ({constants.HF_HUB_CACHE}), and could not be downloaded: {reason}"
        ) from error
    return _with_config(Path(folder), name)
