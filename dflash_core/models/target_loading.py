"""Loads a target from a local folder; never runs code that came with the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.utils import logging as transformers_logging

from dflash_core.attention.registration import PAGED_TREE, register_paged_tree
from dflash_core.device_memory import check_weights_fit
from dflash_core.errors import CheckpointMismatch, CheckpointNotFound, InvalidSettings, UnsupportedModel
from dflash_core.models.load_progress import load_progress
from dflash_core.models.target_support import check_supported
from dflash_core.models.tensor_files import tensor_files
from dflash_core.parallel.plan import plan_split
from dflash_core.parallel.ranks import Ranks, local_rank
from dflash_core.parallel.shards import make_local


def load_target(
    folder: Path, dtype: torch.dtype, device: torch.device, name: str = "", ranks: Ranks | None = None
) -> PreTrainedModel:
    """The causal language model in `folder`, in evaluation mode, read straight to `device`: the host never holds more
    of it than the tensors under way, since files are mapped and each tensor is copied from there. Of a model split over
    `ranks` only this rank's part is read.

    `name` is what progress calls it. Raises `CheckpointNotFound`, `UnsupportedModel`, `CheckpointMismatch` for missing
    or misshapen tensors, or `InvalidSettings` where the device has too little memory.
    """
    config = check_target(folder, 1 if ranks is None else ranks.tp_size)
    register_paged_tree()
    name, parameter_bytes = name or str(folder), _parameter_bytes(config, dtype)
    placement: dict[str, Any] = {"device_map": {"": device}}
    if ranks is not None:
        split = plan_split(config, ranks.tp_size)
        placement = {"distributed_config": DistributedConfig(tp_size=ranks.tp_size, tp_plan=split.overrides)}
        parameter_bytes = {key: num_bytes // ranks.tp_size for key, num_bytes in parameter_bytes.items()}
    check_weights_fit(f"target {name}", sum(parameter_bytes.values()), device)
    try:
        with _shown(name, parameter_bytes), nullcontext() if ranks is None else local_rank(ranks):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                **placement,
                attn_implementation=PAGED_TREE,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except OSError as error:
        raise CheckpointNotFound(f"the target in {folder} has no readable weights: {error}") from error
    except torch.OutOfMemoryError as error:  # another process took what was free
        raise InvalidSettings(f"the weights of target {name} do not fit {device}: {error}") from error
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointMismatch(f"the weights in {folder} do not match its config: {error}") from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise CheckpointMismatch(f"the target in {folder} lacks tensors that its config needs: {', '.join(missing)}")
    placed: PreTrainedModel = model.eval()
    if ranks is not None:
        del placed.config.distributed_config  # a model of this rank's own from here on
        make_local(placed, ranks, split.kv)
    return placed


def check_target(folder: Path, tp_size: int) -> PreTrainedConfig:
    """The config of a target that can be loaded and split over `tp_size` ranks; reads no weights. Raises as
    `load_target`."""
    config = _config(folder)
    check_supported(config)
    if tp_size > 1:
        plan_split(config, tp_size)
    tensor_files(folder)  # missing shards are named before anything is read
    return config


def _config(folder: Path) -> PreTrainedConfig:
    if not (folder / "config.json").is_file():
        raise CheckpointNotFound(f"the target has no config.json: {folder / 'config.json'}")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        model_type = json.loads((folder / "config.json").read_text()).get("model_type")
        raise UnsupportedModel(
            f"transformers itself cannot read the config in {folder}, of model type {model_type!r} (code that comes "
            "with a checkpoint is never run)"
        ) from error
    return config


def _parameter_bytes(config: PreTrainedConfig, dtype: torch.dtype) -> dict[str, int]:
    """Each parameter's size once it is loaded; tied ones count once."""
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return {name: parameter.nbytes for name, parameter in skeleton.named_parameters()}


@contextmanager
def _shown(name: str, parameter_bytes: dict[str, int]) -> Iterator[None]:
    """While it is open, our progress stands in for the bars of `transformers`, which count tensors."""

    def iterate(factory: object, args: tuple[Any, ...], options: dict[str, Any]) -> Iterator[Any]:
        for item in args[0]:
            yield item
            # Here the last item has been taken care of; those of other bars have no bytes.
            if isinstance(item, tuple) and isinstance(item[0], str):
                advance(parameter_bytes.get(item[0], 0))

    with load_progress(f"target {name}", sum(parameter_bytes.values())) as advance:
        previous = transformers_logging.set_tqdm_hook(iterate)
        try:
            yield
        finally:
            transformers_logging.set_tqdm_hook(previous)


def tokenizer_size(folder: Path, vocab_size: int) -> int:
    """Ids that the tokenizer knows; those from there to the model's `vocab_size` are padding and never sampled.

    A folder without `tokenizer.json` pads nothing.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return vocab_size
    ids = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True).values()
    return min(vocab_size, max(ids) + 1)
