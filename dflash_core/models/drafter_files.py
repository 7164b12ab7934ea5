"""Drafters on disk, in the layout of the published checkpoints: `config.json` and `model.safetensors` in bf16."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dflash_core.errors import CheckpointMismatch
from dflash_core.models.drafter import ContextProjection, DFlashDrafter, qwen3_config
from dflash_core.models.drafter_config import DrafterConfig
from dflash_core.models.load_progress import Advance
from dflash_core.models.tensor_files import read_tensors, tensor_files

CONTEXT_PROJECTION_NAMES = ("fc.weight", "hidden_norm.weight")


def save_drafter(model: DFlashDrafter, folder: Path) -> None:
    """Writes the model's weights, rounded to bf16, and its config."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()
    }
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.config.to_json(), indent=2) + "\n")


def load_drafter(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    advance: Advance | None = None,
) -> DFlashDrafter:
    """A drafter in evaluation mode, read straight to `device`. `advance` as in `read_tensors`.

    Raises `CheckpointNotFound`, `UnsupportedModel`, or `CheckpointMismatch` naming the tensors that are missing, not
    wanted, or of another shape than the config says.
    """
    config = DrafterConfig.load(folder)
    with torch.device("meta"):
        model = DFlashDrafter(config)
    _assign(model, read_tensors(folder, tensor_files(folder), device, dtype, advance), folder)
    # Its frequencies are no parameters: made anew on the real device, and in fp32 whatever the dtype.
    model.rotary_emb = type(model.rotary_emb)(qwen3_config(config)).to(device)
    return model.eval()


def load_context_projection(
    folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> ContextProjection:
    """Only the `fc` and `hidden_norm` of the drafter in `folder`, for its target. Raises as `load_drafter`."""
    config = DrafterConfig.load(folder)
    with torch.device("meta"):
        model = ContextProjection(config)
    _assign(model, read_tensors(folder, CONTEXT_PROJECTION_NAMES, device, dtype), folder)
    return model.eval()


def _assign(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Makes the tensors the model's parameters."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    faults = [f"{name} is missing" for name in sorted(wanted.keys() - given.keys())]
    faults += [f"{name} is not wanted" for name in sorted(given.keys() - wanted.keys())]
    faults += [
        f"{name} has shape {list(given[name])}, the config says {list(wanted[name])}"
        for name in sorted(wanted.keys() & given.keys())
        if wanted[name] != given[name]
    ]
    if faults:
        raise CheckpointMismatch(f"the drafter in {folder} does not match its config: {'; '.join(faults)}")
    model.load_state_dict(tensors, assign=True)
    model.requires_grad_(False)
