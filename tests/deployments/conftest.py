"""One Ray cluster with the application on a tiny pair, shared by all end-to-end tests of this folder."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

_CANDIDATES = count(21_000 + os.getpid() % 4_000)


def free_ports(number: int) -> list[int]:
    """Ports that nothing listens on, all different, below those that the system hands out by itself."""
    found: list[int] = []
    while len(found) < number:
        candidate = next(_CANDIDATES)
        with closing(socket.socket()) as probe:
            try:
                probe.bind(("0.0.0.0", candidate))
            except OSError:
                continue
        found.append(candidate)
    return found


def serve_environment() -> dict[str, str]:
    """What Ray Serve reads when it is first imported: several clusters on one machine must not share files or ports."""
    metrics, stats, fallback_http, fallback_grpc = free_ports(4)
    folder = tempfile.mkdtemp(prefix="haproxy-")
    # Serve's proxies share a port rather than fail: those of two clusters would answer each other's clients.
    first = metrics % 99 * 100
    return {
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_http),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(30_000 + first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(30_099 + first),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(40_000 + first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(40_099 + first),
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(sys.executable).parent / "dflash-haproxy"),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # of a busy machine: after 5 s Serve would start it anew
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
    }


os.environ |= serve_environment()


@dataclass(frozen=True)
class ServedApplication:
    """Where the application listens, and what it was made from."""

    url: str
    grpc_target: str
    model: str
    target: Path
    drafter: Path

    def stats(self, deployment: str) -> list[dict[str, Any]]:
        """What every replica of a deployment says of itself."""
        from ray import serve

        results: list[dict[str, Any]] = serve.get_deployment_handle(deployment, "default").broadcast("stats").results()
        return results

    def wait_until_ready(self, timeout_s: float = 120.0) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/healthz", timeout=5.0).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise TimeoutError(f"the application was not ready within {timeout_s} s")


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedApplication]:
    import ray
    from ray import serve

    from deployments import app
    from tests.tiny import make_tiny_pair

    http_port, grpc_port, data_port = free_ports(3)
    pair = make_tiny_pair(tmp_path_factory.mktemp("pair"))
    ray.init(address="local", num_cpus=4, namespace="serve", include_dashboard=False, log_to_driver=False)
    try:
        serve.run(
            app(
                {
                    "target": str(pair.target),
                    "drafter": str(pair.drafter),
                    "served_model_name": "tiny",
                    "tree_budget": 16,  # fixed, since speculation does not pay for models as small as these
                    "http_port": http_port,
                    "grpc_port": grpc_port,
                    "data_plane_ports": f"{data_port}-{data_port + 200}",
                }
            )
        )
        application = ServedApplication(
            f"http://127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}", "tiny", pair.target, pair.drafter
        )
        application.wait_until_ready()
        yield application
    finally:
        serve.shutdown()
        ray.shutdown()
