"""How many replicas an automatic pool has: Ray Serve asks `PoolPolicy` in its controller, with what replicas report.

Serve's own count of requests says nothing here, since rounds and drafts travel on streams of our own. So each kind of
replica reports its load in `record_autoscaling_stats`:

| pool    | reports                | and wants                                                                 |
|---------|------------------------|---------------------------------------------------------------------------|
| target  | `sequences`            | `target.sequences_per_replica` of them on each; those that wait count too |
| drafter | `sequences`, `lag_ms`  | the same, and one more while drafts wait longer than `drafter.max_lag_ms` |
| router  | `rounds`               | `router.rounds_per_replica` in flight on each                             |

Serve keeps to the bounds and delays of the settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from deployments.pools import PoolSettings, ScaledPoolSettings
from deployments.settings import DrafterPoolSettings, ModelPoolSettings, RouterPoolSettings

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

SEQUENCES = "sequences"
ROUNDS = "rounds"
LAG_MS = "lag_ms"

_LOOK_BACK_S = 20.0  # replicas report every 10 s unless Ray Serve is told otherwise


def wanted_replicas(
    reports: Mapping[str, Mapping[Any, float]],
    current: int,
    wanted_shares: Mapping[str, float],
    bounds: Mapping[str, float],
) -> int:
    """How many replicas the load asks for, before the pool's own bounds.

    `reports` has, by figure and replica, what was reported. Of a figure in `wanted_shares` all replicas together have
    so much that each should have the share named there. The mean of a figure in `bounds` should stay below the bound:
    beyond it one replica is added, and above half of it none is taken away, since that is where fewer would lead.
    Where nobody has reported yet, it is `current`.
    """
    totals = {name: sum(reports[name].values()) for name in wanted_shares if reports.get(name)}
    wanted = [math.ceil(total / wanted_shares[name]) for name, total in totals.items()]
    if not wanted:
        return current
    for name, bound in bounds.items():
        figures = reports.get(name, {}).values()
        mean = sum(figures) / len(figures) if figures else 0.0
        if mean > bound:
            wanted.append(current + 1)
        elif mean > bound / 2:
            wanted.append(current)
    return max(1, *wanted)


class PoolPolicy:
    """Made and called by Ray Serve's controller."""

    def __init__(self, wanted_shares: dict[str, float], bounds: dict[str, float]) -> None:
        self._wanted_shares = wanted_shares
        self._bounds = bounds

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        reports = context.aggregated_metrics or {}
        current = context.target_num_replicas
        return wanted_replicas(reports, current, self._wanted_shares, self._bounds), {}


def scaling_options(pool: PoolSettings) -> dict[str, Any]:
    """What a deployment must say of how many replicas it has."""
    if not isinstance(pool, ScaledPoolSettings) or not pool.is_automatic:
        return {"num_replicas": pool.num_replicas}
    wanted_shares, bounds = _figures(pool)
    policy = AutoscalingPolicy(
        policy_function=f"{PoolPolicy.__module__}:{PoolPolicy.__name__}",
        policy_kwargs={"wanted_shares": wanted_shares, "bounds": bounds},
    )
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=pool.fewest_replicas,
            max_replicas=pool.most_replicas,
            upscale_delay_s=pool.scale_up_after_s,
            downscale_delay_s=pool.scale_down_after_s,
            look_back_period_s=_LOOK_BACK_S,
            policy=policy,
        )
    }


def _figures(pool: ScaledPoolSettings) -> tuple[dict[str, float], dict[str, float]]:
    """The shares and bounds for `wanted_replicas`."""
    if isinstance(pool, RouterPoolSettings):
        return {ROUNDS: pool.rounds_per_replica}, {}
    assert isinstance(pool, ModelPoolSettings), f"{type(pool).__name__} reports no load"
    bounds = {LAG_MS: pool.max_lag_ms} if isinstance(pool, DrafterPoolSettings) else {}
    return {SEQUENCES: pool.sequences_per_replica}, bounds
