"""`deployments:app`, the builder that Ray Serve calls with the arguments of `serve run` or of a config file.

It validates, starts Serve with gRPC where nobody has (`serve run` has no flags for it), and binds the four
deployments. It runs in the command line's process, or in a task of the cluster under `serve deploy`; never at import.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import click
import ray
from ray import serve
from ray.dashboard.modules.dashboard_sdk import parse_runtime_env_args
from ray.serve import Application
from ray.serve.config import HTTPOptions, gRPCOptions

from cluster.transports.authentication import DataPlaneSecurity
from deployments.api_keys import ApiKeySource
from deployments.check_config import check_models
from deployments.data_plane import DataPlane
from deployments.drafter import Drafter
from deployments.gateway import Gateway
from deployments.grpc_api import SERVICER_FUNCTIONS
from deployments.placement import actor_options, place_models, placement_options
from deployments.pools import PoolSettings
from deployments.router import Router
from deployments.scaling import scaling_options
from deployments.security import API_KEYS, api_key_source, check_security, data_plane_security
from deployments.settings import GatewayPoolSettings, Settings, parse_settings
from deployments.target import Target

HA_PROXY = "RAY_SERVE_ENABLE_HA_PROXY"
HAPROXY_BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
SERVE_NAMESPACE = "serve"

logger = logging.getLogger("ray.serve")


def app(arguments: dict[str, Any]) -> Application:
    """Builds the application. Raises `SettingsError`: one line, and exit code 1 on the command line."""
    settings = parse_settings(arguments)
    options = _command_line_options()
    must_be_here = options is not None and options.get("address") is None
    check_security(settings.security, must_be_here)
    check_models(settings, must_be_here)
    start_serve(settings, options or {})
    for warning in warnings_of(settings):
        logger.warning(warning)
    settings = place_models(settings, ray.cluster_resources().get("GPU", 0.0))
    return bind(settings, data_plane_security(settings.security), api_key_source(settings.security))


def bind(settings: Settings, security: DataPlaneSecurity, api_keys: ApiKeySource) -> Application:
    """The four deployments, joined by handles. Arguments are the same for the same settings, or a redeployment would
    restart every replica."""
    data_plane = DataPlane(settings.data_plane_host, settings.data_plane_ports, security)
    drafters = None
    if settings.uses_drafter:
        drafters = _deployment(Drafter, settings.drafter).bind(settings.drafter, settings.target.model, data_plane)
    routers = _deployment(Router, settings.router).bind(
        settings.router, settings.strategy, settings.tree_budget, data_plane, drafters
    )
    targets = _deployment(Target, settings.target).bind(
        settings.target, settings.drafter.model if settings.uses_drafter else None, routers, security
    )
    return _deployment(Gateway, settings.gateway).bind(
        settings.target.model,
        settings.model_name,
        settings.drafter.model if settings.uses_drafter else None,
        settings.limits,
        settings.router.failover_timeout_s,
        routers,
        targets,
        security,
        api_keys,
    )


def _deployment(kind: type, pool: PoolSettings) -> serve.Deployment:
    return serve.deployment(
        kind,
        name=kind.__name__,
        **scaling_options(pool),
        ray_actor_options=actor_options(pool),
        # Not None: Ray Serve calls `reconfigure`, which starts the replica, where there is one.
        user_config=None if kind is Gateway else {},
        **placement_options(pool),
        # Queue limits are ours, in the router: Serve's own refusal is not in OpenAI's form.
        max_ongoing_requests=100_000,
        health_check_period_s=2.0,
        health_check_timeout_s=10.0,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=pool.drain_timeout_s if isinstance(pool, GatewayPoolSettings) else 20.0,
        # Discovery calls every router and drafter once a second: not worth a line each.
        logging_config={"enable_access_log": kind is Gateway},
    )


def start_serve(settings: Settings, options: Mapping[str, Any]) -> None:
    """Starts Ray and Serve where they do not run, with the runtime environment that `serve run` was given in `options`:
    its own start comes later and finds them running."""
    if not ray.is_initialized():
        # The time an ingress replica stays open for load balancers to notice: 30 s unless set, also after Ctrl-C.
        os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "2")
        ray.init(
            address=options.get("address"),
            namespace=SERVE_NAMESPACE,
            runtime_env=parse_runtime_env_args(
                **{name: options.get(name) for name in ("runtime_env", "runtime_env_json", "working_dir")}
            ),
        )
    http: dict[str, Any] = {"port": settings.http_port}
    if settings.http_host is not None:
        http["host"] = settings.http_host
    if serve.status().proxies:
        return  # Serve runs already, as under `serve run FILE`: the ports are those of its own options
    functions = list(SERVICER_FUNCTIONS) if settings.grpc_port else []
    serve.start(
        http_options=HTTPOptions(**http),
        grpc_options=gRPCOptions(port=settings.grpc_port or 9000, grpc_servicer_functions=functions),
    )


def _command_line_options() -> dict[str, Any] | None:
    """The options of the `serve run` that calls us; None when Python code or the cluster does."""
    context = click.get_current_context(silent=True)
    return None if context is None else context.params


def warnings_of(settings: Settings) -> list[str]:
    """What an operator should know before clients come."""
    warnings = []
    has_ha_proxy = os.environ.get(HA_PROXY) == "1"
    if not has_ha_proxy:
        warnings.append(
            f"{HA_PROXY}=1 is not set: with Ray Serve's default proxy about one gRPC cancellation in three is "
            "lost, and latency is higher"
        )
    elif not os.environ.get(HAPROXY_BINARY):
        warnings.append(
            f"{HAPROXY_BINARY} is not set to dflash-haproxy: HTTP clients that leave before their answer are often not "
            "noticed, and it is decoded for nobody"
        )
    listening = [name for name, listens in (("HTTP", has_ha_proxy), ("gRPC", settings.grpc_port)) if listens]
    has_keys = settings.security.api_key_file is not None or os.environ.get(API_KEYS)
    if listening and not has_keys:
        warnings.append(
            f"no API key is set and {' and '.join(listening)} can be reached on every address of this machine: whoever "
            "does may use the models"
        )
    return warnings
