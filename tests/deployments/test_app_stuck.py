"""A step or an event loop that never goes on: Ray Serve's health check finds it and replaces that replica alone."""

from __future__ import annotations

import time

import httpx
import pytest

from cluster.transports.authentication import OPEN
from deployments import builder
from deployments.api_keys import ApiKeySource
from deployments.settings import parse_settings
from tests.chaos.supervisor import is_running
from tests.deployments.conftest import ServedApplication, free_ports
from tests.deployments.hanging import HangingRouter, HangingTarget

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

NAME = "stuck"


@pytest.mark.parametrize("kind", [HangingTarget, HangingRouter])
def test_what_is_stuck_is_replaced_alone(
    kind: type, served: ServedApplication, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import serve

    monkeypatch.setattr(builder, kind.__name__.removeprefix("Hanging"), kind)
    (port,) = free_ports(1)
    settings = {
        "target": str(served.target),
        "drafter": str(served.drafter),
        "served_model_name": "tiny",
        "tree_budget": 16,
        "router.failover_timeout_s": 120,
        "data_plane_ports": f"{port}-{port + 200}",
    }
    serve.run(builder.bind(parse_settings(settings), OPEN, ApiKeySource()), name=NAME, route_prefix=f"/{NAME}")
    names = {"Target", "Router", "Drafter", kind.__name__} - {kind.__name__.removeprefix("Hanging")}
    handle = {name: serve.get_deployment_handle(name, NAME) for name in names}

    def pids(deployment: str) -> list[int]:
        return [replica["pid"] for replica in handle[deployment].broadcast("stats").results()]

    try:
        body = {"prompt": "def add(", "max_tokens": 40, "temperature": 0}
        expected = _complete(served, body)
        (stuck,) = pids(kind.__name__)
        others = {name: pids(name) for name in names - {kind.__name__}}
        hanging = handle[kind.__name__].hang.remote()
        began = time.monotonic()
        time.sleep(1.0)  # it has arrived
        assert _complete(served, body) == expected  # waits for what is stuck, then goes on at the new replica
        print(f"a stuck {kind.__name__} cost {time.monotonic() - began:.1f} s")
        assert not is_running(stuck)
        assert {name: pids(name) for name in names - {kind.__name__}} == others
        assert pids(kind.__name__) != [stuck]
        del hanging
    finally:
        serve.delete(NAME)


def _complete(served: ServedApplication, body: dict[str, object]) -> str:
    answer = httpx.post(f"{served.url}/{NAME}/v1/completions", json=body, timeout=200)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text
