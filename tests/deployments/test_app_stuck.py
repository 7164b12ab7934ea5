"""A step that never ends: Ray Serve's health check finds it and replaces that replica alone."""

from __future__ import annotations

import time

import httpx
import pytest

from deployments import builder
from deployments.settings import parse_settings
from tests.chaos.supervisor import is_running
from tests.deployments.conftest import ServedApplication, free_ports
from tests.deployments.hanging import HangingTarget

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

NAME = "stuck"


def test_a_stuck_step_restarts_that_replica_alone(served: ServedApplication, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import serve

    monkeypatch.setattr(builder, "Target", HangingTarget)
    (port,) = free_ports(1)
    settings = {
        "target": str(served.target),
        "drafter": str(served.drafter),
        "served_model_name": "tiny",
        "tree_budget": 16,
        "router.failover_timeout_s": 120,
        "data_plane_ports": f"{port}-{port + 200}",
    }
    serve.run(builder.bind(parse_settings(settings)), name=NAME, route_prefix=f"/{NAME}")
    handle = {name: serve.get_deployment_handle(name, NAME) for name in ("HangingTarget", "Router", "Drafter")}

    def pids(deployment: str) -> list[int]:
        return [replica["pid"] for replica in handle[deployment].broadcast("stats").results()]

    try:
        body = {"prompt": "def add(", "max_tokens": 40, "temperature": 0}
        expected = _complete(served, body)
        (stuck,) = pids("HangingTarget")
        others = [pids("Router"), pids("Drafter")]
        handle["HangingTarget"].hang.remote().result()
        began = time.monotonic()
        assert _complete(served, body) == expected  # waits behind the stuck step, then goes on at the new replica
        print(f"a stuck step cost {time.monotonic() - began:.1f} s")
        assert not is_running(stuck)
        assert [pids("Router"), pids("Drafter")] == others
        assert pids("HangingTarget") != [stuck]
    finally:
        serve.delete(NAME)


def _complete(served: ServedApplication, body: dict[str, object]) -> str:
    answer = httpx.post(f"{served.url}/{NAME}/v1/completions", json=body, timeout=200)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text
