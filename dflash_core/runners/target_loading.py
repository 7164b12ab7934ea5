"""Everything a target reads from disk: its model, and the part of its drafter that it runs."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from dflash_core.models.checkpoints import TargetConfig, check_pair, resolve_checkpoint
from dflash_core.models.drafter import ContextProjection
from dflash_core.models.drafter_config import DrafterConfig
from dflash_core.models.drafter_files import load_context_projection
from dflash_core.models.shared_tensors import fc_fingerprint
from dflash_core.models.target_loading import load_target, tokenizer_size
from dflash_core.runners.devices import pick_device, pick_dtype, set_up_process
from dflash_core.runners.settings import TargetSettings


@dataclass(frozen=True, slots=True)
class TargetFeatures:
    """The part of a drafter that its target runs: which layers it reads, and what projects them."""

    target_layer_ids: tuple[int, ...]
    projection: ContextProjection
    fingerprint: str  # of the projection


@dataclass(frozen=True, slots=True)
class TargetParts:
    model: PreTrainedModel
    vocab_size: int  # without padding
    features: TargetFeatures | None


def load_target_parts(target: str, drafter: str | None, settings: TargetSettings) -> TargetParts:
    """Checks the pair before any weight is read. Sets torch's threads and TF32. Raises as `TargetRunner.load`."""
    folder = resolve_checkpoint(target)
    drafter_folder = None if drafter is None else resolve_checkpoint(drafter)
    drafter_config = None if drafter_folder is None else DrafterConfig.load(drafter_folder)
    if drafter_config is not None:
        check_pair(TargetConfig.load(folder), drafter_config)
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device)
    set_up_process(settings.num_threads)
    model = load_target(folder, dtype, device, target)
    features = None
    if drafter_folder is not None and drafter_config is not None:
        features = TargetFeatures(
            drafter_config.target_layer_ids,
            load_context_projection(drafter_folder, dtype, device),
            fc_fingerprint(drafter_folder),
        )
    return TargetParts(model, tokenizer_size(folder, model.config.vocab_size), features)
