"""What a target's cache is made of: pages of keys and values, context features beside them, a staging buffer."""

from __future__ import annotations

from torch import nn

from dflash_core.models.target import TargetModel
from dflash_core.runners.cache_memory import CacheMemory, CacheNeeds, size_cache, unique_bytes
from dflash_core.runners.settings import TargetSettings

DEFAULT_CPU_BYTES = 256 << 20


def size_target_cache(
    name: str, model: TargetModel, projection: nn.Module | None, settings: TargetSettings, max_model_len: int
) -> CacheMemory:
    """At least one sequence of `max_model_len` tokens; features where there is a `projection` that makes them.

    Raises `InvalidSettings`.
    """
    modules = [model.model] if projection is None else [model.model, projection]
    needs = CacheNeeds(
        owner=f"target {name}",
        device=model.device,
        weight_bytes=unique_bytes(t for module in modules for t in (*module.parameters(), *module.buffers())),
        kv_bytes_per_token=model.kv_shape.bytes_per_token,
        feature_bytes_per_token=0 if projection is None else model.hidden_size * model.dtype.itemsize,
        staging_bytes=model.kv_shape.bytes_per_token * settings.max_tree_rows,
        max_model_len=max_model_len,
        min_tokens=max_model_len,
        default_cpu_bytes=DEFAULT_CPU_BYTES,
    )
    return size_cache(needs, settings)
