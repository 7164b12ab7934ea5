"""Everything a drafter reads from disk: its model, and its target's embedding and head."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from dflash_core.device_memory import check_weights_fit
from dflash_core.models.checkpoints import TargetConfig
from dflash_core.models.drafter import DFlashDrafter
from dflash_core.models.drafter_files import load_drafter
from dflash_core.models.load_progress import load_progress
from dflash_core.models.shared_tensors import EmbeddingAndHead, SharedNames
from dflash_core.models.tensor_files import tensor_files, tensor_sizes


class DrafterParts(NamedTuple):
    model: DFlashDrafter
    shared: EmbeddingAndHead


def load_drafter_parts(
    name: str, folder: Path, target_folder: Path, target_config: TargetConfig, dtype: torch.dtype, device: torch.device
) -> DrafterParts:
    """Reads both straight to `device`, and from the target's shards nothing else. `name` is what progress calls it.

    Raises `CheckpointNotFound`, `CheckpointMismatch`, `UnsupportedModel`, and `InvalidSettings` where they do not fit.
    """
    shared_sizes = tensor_sizes(target_folder, SharedNames.find(target_folder, target_config).all())
    num_elements = sum(shared_sizes.values()) + sum(tensor_sizes(folder, tensor_files(folder)).values())
    check_weights_fit(f"drafter {name}", num_elements * dtype.itemsize, device)
    with load_progress(f"drafter {name}", num_elements * dtype.itemsize) as advance:
        shared = EmbeddingAndHead.load(target_folder, target_config, dtype, device, advance)
        model = load_drafter(folder, dtype, device, advance)
    return DrafterParts(model, shared)
