"""A target's parts, put together: model, caches, pass. Of a target over several ranks each rank has its own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from dflash_core.attention.backend import AttentionBackend, picks_triton
from dflash_core.cache.pools import FeaturePool, KvPool
from dflash_core.models.cpu_layers import fuse_layers
from dflash_core.models.cpu_norms import fuse_norms
from dflash_core.models.fused_layers import fuse_products
from dflash_core.models.target import TargetModel
from dflash_core.parallel.plan import shard_size
from dflash_core.parallel.ranks import Ranks
from dflash_core.parallel.share import RankShare
from dflash_core.runners.cache_memory import CacheMemory
from dflash_core.runners.host_pass import HostPass
from dflash_core.runners.settings import TargetSettings
from dflash_core.runners.target_loading import TargetFeatures
from dflash_core.runners.target_memory import size_target_cache
from dflash_core.runners.target_pass import TargetCaches, TargetPass
from dflash_core.sampling.sharded import VocabularyShard


@dataclass(frozen=True, slots=True)
class TargetAssembly:
    name: str
    model: TargetModel
    vocab_size: int  # without padding
    max_model_len: int
    memory: CacheMemory
    caches: TargetCaches
    target_pass: TargetPass
    fingerprint: str  # of the model, the same on all ranks


def assemble(
    model: PreTrainedModel,
    features: TargetFeatures | None,
    settings: TargetSettings,
    *,
    name: str = "",
    vocab_size: int | None = None,
    ranks: Ranks | None = None,
) -> TargetAssembly:
    """Takes `model` over and makes its caches.

    Args:
        features: None where no drafter is to be fed, and on every rank but 0.
        vocab_size: ids from here on are padding and never chosen; None: there is no padding.
        ranks: those that hold the model together, all of which must call this; None: this process alone.

    Raises `UnsupportedModel`, `InvalidSettings`.
    """
    is_on_device = picks_triton(AttentionBackend(settings.attention), model.device)
    target = TargetModel(
        model, features.target_layer_ids if features else (), fuse_products if is_on_device else fuse_layers
    )
    projection = features.projection if features else None
    if projection is not None and not is_on_device:
        fuse_norms(projection)
    vocab_size = vocab_size or target.vocab_size
    max_model_len = min(settings.max_model_len or target.max_model_len, target.max_model_len)
    name = name or model.config.model_type
    owner = name if ranks is None else f"{name}, rank {ranks.tp_rank} of {ranks.tp_size}"
    memory = size_target_cache(owner, target, projection, settings, max_model_len)
    fingerprint = target.fingerprint()
    share: RankShare | None = None
    if ranks is not None:
        # Rank 0 has the features too: what fits there fits everywhere, unless another GPU is fuller.
        memory = replace(memory, num_blocks=ranks.least(memory.num_blocks))
        parts = b"".join(ranks.gather_bytes(fingerprint.encode()))
        fingerprint = hashlib.blake2b(parts, digest_size=16).hexdigest()
        share = RankShare(VocabularyShard(_first_id(target, ranks), vocab_size), ranks)
    caches = _make_caches(target, features, memory, settings)
    target_pass = _make_pass(target, caches, settings, vocab_size, max_model_len, share, is_on_device)
    return TargetAssembly(name, target, vocab_size, max_model_len, memory, caches, target_pass, fingerprint)


def _first_id(model: TargetModel, ranks: Ranks) -> int:
    return ranks.tp_rank * shard_size(model.vocab_size, ranks.tp_size)


def _make_caches(
    model: TargetModel, features: TargetFeatures | None, memory: CacheMemory, settings: TargetSettings
) -> TargetCaches:
    num_blocks, device = memory.num_blocks, model.device
    pool = KvPool(model.kv_shape, num_blocks, settings.kv_block_size, settings.max_tree_rows, device)
    if features is None:
        return TargetCaches(pool, None, None)
    pages = FeaturePool(num_blocks, settings.kv_block_size, model.hidden_size, model.dtype, device)
    return TargetCaches(pool, pages, features.projection)


def _make_pass(
    model: TargetModel,
    caches: TargetCaches,
    settings: TargetSettings,
    vocab_size: int,
    max_model_len: int,
    share: RankShare | None,
    is_on_device: bool,
) -> TargetPass:
    if not is_on_device:
        return HostPass(model, caches, vocab_size, share)
    # Here, because Triton exists on Linux only and takes a second to import.
    from dflash_core.runners.device_pass import DevicePass

    return DevicePass(model, caches, settings, vocab_size, max_model_len, share)
