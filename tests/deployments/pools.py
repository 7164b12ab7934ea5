"""An application on several nodes, deployed and changed by `serve deploy`, and what the dashboard says of it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.waiting import answers, wait

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Replica:
    """One that Ray Serve lists, in whatever state."""

    replica_id: str
    node_id: str | None  # None: Ray has not placed it yet
    is_running: bool


class Pools:
    """A cluster of three nodes, and the application deployed onto it by `serve deploy`."""

    def __init__(self, config_file: Path, config: dict[str, Any], dashboard: str, node_ids: dict[str, str]) -> None:
        self._config_file = config_file
        self._config = config
        self._dashboard = dashboard
        self.node_ids = node_ids  # by pool
        self.grpc_target = f"127.0.0.1:{config['grpc_options']['port']}"
        self.url = f"http://127.0.0.1:{config['http_options']['port']}"

    def set_pool(self, pool: str, **settings: Any) -> None:
        """What the pool's section of `args` says from the next `deploy` on, beside its model and where it runs."""
        (application,) = self._config["applications"]
        section = application["args"].get(pool, {})
        kept = {name: section[name] for name in ("model", "labels", "resources") if name in section}
        application["args"][pool] = kept | settings

    def deploy(self, deployment: str | None = None, **changes: Any) -> None:
        """`changes` of one deployment: `num_cpus`, another option of its replicas than before, so that each must be
        replaced; `user_config`, with which each starts anew."""
        (application,) = self._config["applications"]
        entries = {entry["name"]: entry for entry in application["deployments"]}
        for name, value in changes.items():
            assert deployment is not None
            (entries[deployment] if name == "user_config" else entries[deployment]["ray_actor_options"])[name] = value
        self._config_file.write_text(yaml.safe_dump(self._config))
        command = [sys.executable, "-m", "ray.serve.scripts", "deploy", "-a", self._dashboard, str(self._config_file)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr

    def replicas(self, deployment: str) -> list[Replica]:
        listed = self._listed(deployment)
        return [Replica(r["replica_id"], r.get("node_id"), r["state"] == "RUNNING") for r in listed.get("replicas", [])]

    def is_healthy(self, deployment: str) -> bool:
        """And not being changed."""
        return bool(self._listed(deployment).get("status") == "HEALTHY")

    def _listed(self, deployment: str) -> dict[str, Any]:
        answer = httpx.get(f"{self._dashboard}/api/serve/applications/", timeout=30).raise_for_status().json()
        listed: dict[str, Any] = answer["applications"]["default"]["deployments"].get(deployment, {})
        return listed

    def wait_for_dashboard(self, logs: Path) -> None:
        """`serve deploy` does not wait for it. Raises `TimeoutError` with what it said last and what it logged."""
        said = "nothing"

        def has_dashboard() -> bool:
            nonlocal said
            try:
                answer = httpx.get(f"{self._dashboard}/api/serve/applications/", timeout=30.0)
            except httpx.TransportError as error:
                said = repr(error)
                return False
            said = f"{answer.status_code} {answer.text}"
            return answer.status_code == 200

        try:
            wait(has_dashboard, "the dashboard")
        except TimeoutError as error:
            logged = [f"{path.name}:\n{path.read_text()[-2000:]}" for path in sorted(logs.glob("dashboard*"))]
            raise TimeoutError("\n\n".join([f"{error}; it said last: {said}", *logged])) from None

    def is_ready(self) -> bool:
        return answers(f"{self.url}/healthz")
