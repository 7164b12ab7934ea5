"""What Ray reserves for each kind of replica, and where its model runs."""

from __future__ import annotations

import math
from typing import Any

from deployments.settings import ModelPoolSettings, PoolSettings, Settings

MIB = 2**20


def place_models(settings: Settings, cluster_gpus: float) -> Settings:
    """Settles `device: auto` and each GPU share by the number of GPUs in the cluster.

    With fewer GPUs than replicas that want one, each replica gets an equal part, so that one GPU holds a whole pair.
    `device: cuda` stays in a cluster without a GPU so far: it may start machines on demand.
    """
    pools: dict[str, ModelPoolSettings] = {"target": settings.target}
    if settings.uses_drafter:
        pools["drafter"] = settings.drafter
    on_gpu = [pool for pool in pools.values() if pool.device == "cuda" or (pool.device == "auto" and cluster_gpus > 0)]
    sharing = sum(pool.num_replicas for pool in on_gpu if pool.num_gpus is None)
    per_gpu = math.ceil(sharing / cluster_gpus) if cluster_gpus else 1
    placed = {
        name: pool.model_copy(
            update={"device": "cuda", "num_gpus": 1 / max(1, per_gpu) if pool.num_gpus is None else pool.num_gpus}
            if pool in on_gpu
            else {"device": "cpu", "num_gpus": 0.0}
        )
        for name, pool in pools.items()
    }
    return settings.model_copy(update=placed)


def actor_options(pool: PoolSettings) -> dict[str, Any]:
    """`ray_actor_options` of one replica of the pool."""
    options: dict[str, Any] = {"num_cpus": pool.num_cpus}
    if isinstance(pool, ModelPoolSettings) and pool.num_gpus:
        options["num_gpus"] = pool.num_gpus
    if pool.resources:
        options["resources"] = dict(pool.resources)
    if pool.memory_mib is not None:
        options["memory"] = pool.memory_mib * MIB
    return options
