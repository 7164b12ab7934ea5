"""The number of replicas that a load asks for, and what Ray Serve is told of it."""

from __future__ import annotations

import math
import time
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingContext

from deployments.scaling import LAG_MS, ROUNDS, SEQUENCES, scaling_options, wanted_replicas
from deployments.settings import parse_settings

loads = st.lists(st.floats(0, 1e4), min_size=1, max_size=8)


def _context(reports: dict[str, dict[Any, float]], target_num_replicas: int) -> AutoscalingContext:
    return AutoscalingContext(
        deployment_id=DeploymentID("Drafter", "default"),
        deployment_name="Drafter",
        app_name="default",
        current_num_replicas=target_num_replicas,
        target_num_replicas=target_num_replicas,
        running_replicas=[],
        total_num_requests=0,
        total_queued_requests=0,
        aggregated_metrics=reports,
        raw_metrics={},
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=9,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=time.time(),
        config=None,
    )


@given(loads, st.integers(1, 9), st.floats(0.1, 100))
def test_each_replica_gets_its_share_and_none_too_many(figures: list[float], current: int, share: float) -> None:
    reports = {SEQUENCES: dict(enumerate(figures))}
    wanted = wanted_replicas(reports, current, {SEQUENCES: share}, {})
    assert wanted == max(1, math.ceil(sum(figures) / share))


@given(loads, st.lists(st.floats(0, 1e3), min_size=1, max_size=8), st.integers(1, 9))
def test_lag_adds_one_and_keeps_what_is_needed(figures: list[float], lags: list[float], current: int) -> None:
    reports = {SEQUENCES: dict(enumerate(figures)), LAG_MS: dict(enumerate(lags))}
    shares, bounds = {SEQUENCES: 8.0}, {LAG_MS: 20.0}
    wanted = wanted_replicas(reports, current, shares, bounds)
    without = wanted_replicas(reports, current, shares, {})
    mean = sum(lags) / len(lags)
    assert wanted == max(without, current + 1 if mean > 20 else current if mean > 10 else 1)


def test_before_anybody_has_reported_nothing_changes() -> None:
    assert wanted_replicas({}, 3, {SEQUENCES: 8.0}, {LAG_MS: 20.0}) == 3
    assert wanted_replicas({SEQUENCES: {}}, 3, {SEQUENCES: 8.0}, {}) == 3


def test_fixed_pools_have_no_autoscaling() -> None:
    settings = parse_settings({"target.num_replicas": 3})
    assert scaling_options(settings.target) == {"num_replicas": 3}
    assert scaling_options(settings.gateway) == {"num_replicas": 1}


def test_serve_makes_the_policy_from_what_a_pool_says() -> None:
    from ray.serve._private.autoscaling_state import _resolve_policy_callable

    settings = parse_settings(
        {
            "drafter": {"min_replicas": 2, "max_replicas": 5, "sequences_per_replica": 10, "max_lag_ms": 4},
            "router": {"max_replicas": 3, "rounds_per_replica": 2, "scale_up_after_s": 1, "scale_down_after_s": 2},
        }
    )
    drafters = scaling_options(settings.drafter)["autoscaling_config"]
    assert (drafters.min_replicas, drafters.max_replicas) == (2, 5)
    policy = _resolve_policy_callable(drafters.policy)
    reports = {SEQUENCES: {"a": 20.0, "b": 11.0}, LAG_MS: {"a": 1.0, "b": 1.0}}
    assert policy(_context(reports, 2))[0] == 4
    routers = scaling_options(settings.router)["autoscaling_config"]
    assert (routers.min_replicas, routers.max_replicas) == (1, 3)
    assert (routers.upscale_delay_s, routers.downscale_delay_s) == (1, 2)
    assert _resolve_policy_callable(routers.policy)(_context({ROUNDS: {"a": 5.0}}, 1))[0] == 3
