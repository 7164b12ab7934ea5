"""One Ray cluster with the application on a tiny pair, shared by all end-to-end tests of this folder."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, all different, below those that the system hands out by itself."""
    found: list[int] = []
    with ExitStack() as stack:
        candidate = 21_000 + os.getpid() % 4_000
        while len(found) < count:
            probe = stack.enter_context(closing(socket.socket()))
            try:
                probe.bind(("0.0.0.0", candidate))
                found.append(candidate)
            except OSError:
                pass
            candidate += 1
    return found


_HTTP, _GRPC, _METRICS, _STATS, _FIRST_DATA = free_ports(5)
_HAPROXY_FOLDER = tempfile.mkdtemp(prefix="haproxy-")

# Ray Serve reads these when it is first imported. Several test runs on one machine must not share files or ports.
os.environ |= {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{_HAPROXY_FOLDER}/haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{_HAPROXY_FOLDER}/admin.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": _HAPROXY_FOLDER,
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{_HAPROXY_FOLDER}/server-state",
    "RAY_SERVE_HAPROXY_METRICS_PORT": str(_METRICS),
    "RAY_SERVE_HAPROXY_STATS_PORT": str(_STATS),
}


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

    pair = make_tiny_pair(tmp_path_factory.mktemp("pair"))
    ray.init(address="local", num_cpus=4, namespace="serve", include_dashboard=False, log_to_driver=False)
    try:
        serve.run(
            app(
                {
                    "target": str(pair.target),
                    "drafter": str(pair.drafter),
                    "served_model_name": "tiny",
                    "http_port": _HTTP,
                    "grpc_port": _GRPC,
                    "data_plane_ports": f"{_FIRST_DATA}-{_FIRST_DATA + 200}",
                }
            )
        )
        application = ServedApplication(
            f"http://127.0.0.1:{_HTTP}", f"127.0.0.1:{_GRPC}", "tiny", pair.target, pair.drafter
        )
        application.wait_until_ready()
        yield application
    finally:
        serve.shutdown()
        ray.shutdown()
