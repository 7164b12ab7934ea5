"""Drafters on another node, behind a link on which a packet takes as long as between sites of a city: `make
test-namespaces`, as root on Linux."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deployments.conftest import serve_environment
from tests.namespaces.wire import Namespace, joined_namespaces
from tests.waiting import wait

pytestmark = [pytest.mark.namespaces, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
DELAY_S = 0.005
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
HEAD_PORT, DASHBOARD_PORT, HTTP_PORT, GRPC_PORT = 6379, 8265, 8000, 9000  # a namespace has all ports for itself


def _config() -> dict[str, Any]:
    """With the embedded pair: for a target whose rounds are much shorter than the way of a draft none is waited for."""
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "0.0.0.0", "port": HTTP_PORT},
        "grpc_options": {"port": GRPC_PORT, "grpc_servicer_functions": ["deployments.grpc_api.add_public_services"]},
        "applications": [
            {
                "name": "default",
                "route_prefix": "/",
                "import_path": "deployments:app",
                "args": {
                    "target": {"labels": {"pool": "targets"}},
                    "drafter": {"labels": {"pool": "drafters"}},
                    "router": {"labels": {"pool": "targets"}},
                    "gateway": {"labels": {"pool": "targets"}},
                    "tree_budget": 16,
                },
            }
        ],
    }


@contextlib.contextmanager
def _ray_node(namespace: Namespace, pool: str, *arguments: str) -> Iterator[None]:
    """A node that ends, with all its processes, when the body does."""
    command = [*namespace.enter, *RAY, "start", *arguments, "--block", f"--node-ip-address={namespace.address}"]
    command += ["--num-cpus=2", f"--labels=pool={pool}", "--disable-usage-stats"]
    node = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        # All that has the namespace: raylets put their children into process groups of their own.
        node.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            node.wait(20)
        listed = subprocess.run(["ip", "netns", "pids", namespace.name], capture_output=True, text=True, check=True)
        for pid in listed.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        node.wait()


def _succeeds(namespace: Namespace, *command: str) -> bool:
    return subprocess.run([*namespace.enter, *command], cwd=ROOT, capture_output=True).returncode == 0


def _answers(namespace: Namespace, url: str, words: str) -> bool:
    """With these words in the answer."""
    ask = f"import httpx; assert {words!r} in httpx.get({url!r}).raise_for_status().text"
    return _succeeds(namespace, sys.executable, "-c", ask)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Namespace]:
    """The head's namespace, with gateway, router and target; the drafter is in the other one."""
    for name, value in (serve_environment() | {"PYTHONPATH": str(ROOT)}).items():
        monkeypatch.setenv(name, value)
    with joined_namespaces(DELAY_S) as (here, there), contextlib.ExitStack() as nodes:
        head = ["--head", f"--port={HEAD_PORT}", f"--dashboard-port={DASHBOARD_PORT}"]
        nodes.enter_context(_ray_node(here, "targets", *head))
        head_address = f"{here.address}:{HEAD_PORT}"
        wait(lambda: _succeeds(here, *RAY, "status", f"--address={head_address}"), "the head", 60.0)
        nodes.enter_context(_ray_node(there, "drafters", f"--address={head_address}"))
        config = tmp_path / "serve.yaml"
        config.write_text(yaml.safe_dump(_config()))
        dashboard = f"http://127.0.0.1:{DASHBOARD_PORT}"
        applications = f"{dashboard}/api/serve/applications/"
        wait(lambda: _answers(here, applications, "applications"), "the dashboard", 60.0)
        deploy = [sys.executable, "-m", "ray.serve.scripts", "deploy", "-a", dashboard, str(config)]
        subprocess.run([*here.enter, *deploy], cwd=ROOT, check=True, timeout=120)
        # Not only ready, which it is without a drafter.
        wait(lambda: _answers(here, applications, '"status": "RUNNING"'), "the application", 150.0)
        yield here


def test_drafts_from_another_site_change_no_token(here: Namespace) -> None:
    client = [*here.enter, sys.executable, "-m", "tests.namespaces.client", f"{here.address}:{GRPC_PORT}"]
    done = subprocess.run(client, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=300)
    outputs = [json.loads(line) for line in done.stdout.splitlines()]
    drafted, plain = [output for output in outputs if output["tree_budget"]], outputs[-len(outputs) // 2 :]
    assert [output["token_ids"] for output in drafted] == [output["token_ids"] for output in plain]
    num_tokens, num_rounds = (sum(len(o["token_ids"]) for o in drafted), sum(o["rounds"] for o in drafted))
    print(f"{DELAY_S * 1e3:g} ms each way: {num_tokens / num_rounds:.2f} tokens a round")
    assert num_tokens > 1.3 * num_rounds, "drafts came over the wire, and many were accepted"
    # A draft needs a message each way: no round with one was shorter.
    assert max(output["seconds"] for output in drafted) > 2 * DELAY_S * num_rounds / len(drafted)
