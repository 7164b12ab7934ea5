"""Everything a target reads from disk: its model, and the part of its drafter that it runs."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from dflash_core.models.checkpoints import TargetConfig, check_pair, resolve_checkpoint
from dflash_core.models.drafter import ContextProjection
from dflash_core.models.drafter_config import DrafterConfig
from dflash_core.models.drafter_files import load_context_projection
from dflash_core.models.shared_tensors import fc_fingerprint
from dflash_core.models.target_loading import check_target, load_target, tokenizer_size
from dflash_core.parallel.ranks import Ranks
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


def check_target_parts(target: str, drafter: str | None, settings: TargetSettings) -> DrafterConfig | None:
    """The drafter's config, where there is one. Reads no weights. Raises as `load_target_parts`."""
    folder = resolve_checkpoint(target)
    check_target(folder, settings.tensor_parallel)
    if drafter is None:
        return None
    config = DrafterConfig.load(resolve_checkpoint(drafter))
    check_pair(TargetConfig.load(folder), config)
    return config


def load_target_parts(
    target: str, drafter: str | None, settings: TargetSettings, ranks: Ranks | None = None
) -> TargetParts:
    """Checks the pair before any weight is read. Sets torch's threads and TF32. Of a target over `ranks` it reads this
    rank's part, and waits for the others. Raises as `TargetRunner.load`."""
    drafter_config = check_target_parts(target, drafter, settings)
    folder = resolve_checkpoint(target)
    device = pick_device(settings.device, 0 if ranks is None else ranks.device_index)
    dtype = pick_dtype(settings.dtype, device)
    set_up_process(settings.num_threads)
    model = load_target(folder, dtype, device, target, ranks)
    features = None
    if drafter is not None and drafter_config is not None:
        drafter_folder = resolve_checkpoint(drafter)
        features = TargetFeatures(
            drafter_config.target_layer_ids,
            load_context_projection(drafter_folder, dtype, device),
            fc_fingerprint(drafter_folder),
        )
    if ranks is not None:
        ranks.meet()
    return TargetParts(model, tokenizer_size(folder, model.config.vocab_size), features)
