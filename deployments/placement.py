"""What Ray reserves for each kind of replica, and where its model runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from deployments.pools import PoolSettings
from deployments.settings import ModelPoolSettings, Settings, TargetPoolSettings

MIB = 2**20
RANK_SHARE = 0.75  # of a GPU for a rank of several, where it must share with a drafter: two of them fit on none


def place_models(settings: Settings, cluster_gpus: float) -> Settings:
    """Settles `device: auto` and each GPU share by the number of GPUs in the cluster.

    With fewer GPUs than replicas that want one, each replica gets an equal part, so that one GPU holds a whole pair;
    ranks of one target never share a GPU, since they get more than half of it each. `device: cuda` stays in a cluster
    without a GPU so far: it may start machines on demand.
    """
    pools: dict[str, ModelPoolSettings] = {"target": settings.target}
    if settings.uses_drafter:
        pools["drafter"] = settings.drafter
    on_gpu = {
        name: pool
        for name, pool in pools.items()
        if pool.device == "cuda" or (pool.device == "auto" and cluster_gpus > 0)
    }
    shares = _gpu_shares(on_gpu, cluster_gpus)
    placed = {
        name: pool.model_copy(
            update={"device": "cuda", "num_gpus": shares[name]}
            if name in on_gpu
            else {"device": "cpu", "num_gpus": 0.0}
        )
        for name, pool in pools.items()
    }
    return settings.model_copy(update=placed)


def _gpu_shares(pools: Mapping[str, ModelPoolSettings], cluster_gpus: float) -> dict[str, float]:
    """Of each replica or rank: as set, else a whole GPU where there are enough."""
    wanting = sum(pool.most_replicas * num_ranks(pool) for pool in pools.values() if pool.num_gpus is None)
    per_gpu = max(1, math.ceil(wanting / cluster_gpus)) if cluster_gpus else 1

    def share(pool: ModelPoolSettings) -> float:
        if pool.num_gpus is not None:
            return pool.num_gpus
        if per_gpu == 1:
            return 1.0
        return RANK_SHARE if num_ranks(pool) > 1 else min(1 / per_gpu, 1 - RANK_SHARE if _has_ranks(pools) else 1.0)

    return {name: share(pool) for name, pool in pools.items()}


def _has_ranks(pools: Mapping[str, ModelPoolSettings]) -> bool:
    return any(num_ranks(pool) > 1 for pool in pools.values())


def num_ranks(pool: PoolSettings) -> int:
    """Processes of one replica."""
    return pool.tensor_parallel if isinstance(pool, TargetPoolSettings) else 1


def placement_options(pool: PoolSettings) -> dict[str, Any]:
    """What else a deployment must say of where its replicas go: a replica of several ranks has a bundle for each, and
    is in the first of them itself."""
    if num_ranks(pool) == 1:
        return {}
    options = actor_options(pool)
    bundle = {"CPU": options["num_cpus"], "GPU": options.get("num_gpus", 0), "memory": options.get("memory", 0)}
    bundle |= options.get("resources", {})
    placed: dict[str, Any] = {
        "placement_group_bundles": [{name: share for name, share in bundle.items() if share}] * num_ranks(pool)
    }
    if pool.labels:
        placed["placement_group_bundle_label_selector"] = [dict(pool.labels)] * num_ranks(pool)
    return placed


def actor_options(pool: PoolSettings) -> dict[str, Any]:
    """`ray_actor_options` of one replica of the pool, or of one of its ranks, which are where their bundles are."""
    options: dict[str, Any] = {"num_cpus": pool.num_cpus}
    if isinstance(pool, ModelPoolSettings) and pool.num_gpus:
        options["num_gpus"] = pool.num_gpus
    if pool.resources:
        options["resources"] = dict(pool.resources)
    if pool.labels and num_ranks(pool) == 1:
        options["label_selector"] = dict(pool.labels)
    if pool.memory_mib is not None:
        options["memory"] = pool.memory_mib * MIB
    return options
