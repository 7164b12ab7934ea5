"""`user_config`: what it may hold, and that a replica starts anew with it and lets go of what it held."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.transports.authentication import OPEN
from deployments import target as target_deployment
from deployments.check_config import check_config
from deployments.settings import Settings, SettingsError, parse_settings
from deployments.target import Target
from deployments.user_config import with_user_config
from dflash_core.errors import Unavailable
from tests.tiny import make_tiny_pair


def _settings() -> Settings:
    return parse_settings({"target.labels": "pool=targets", "target.max_rows": 600, "drafter.max_replicas": 3})


def test_its_settings_replace_those_of_args() -> None:
    settings = _settings()
    changed = with_user_config(settings.target, {"max_rows": 2048, "prefix_caching": False})
    assert changed == settings.target.model_copy(update={"max_rows": 2048, "prefix_caching": False})
    assert with_user_config(settings.drafter, {"num_candidates": 32}).max_replicas == 3
    assert with_user_config(settings.router, {"max_waiting": "9"}).max_waiting == 9


def test_a_time_of_restart_changes_no_setting() -> None:
    settings = _settings()
    for pool in (settings.target, settings.drafter, settings.router):
        assert with_user_config(pool, {"restarted_at": "2026-11-28"}) == pool
        assert with_user_config(pool, {}) == pool


@pytest.mark.parametrize(
    ("user_config", "message"),
    [
        ({"max_rowz": 1}, "user_config of Target: unknown setting 'target.max_rowz'; did you mean 'target.max_rows'?"),
        ({"max_rows": 0}, "user_config of Target: setting 'target.max_rows': Input should be greater than or equal"),
        ({"max_rows": 64}, "max_tree_rows 512 exceeds max_rows 64"),
        ({"model": "other"}, "user_config of Target: 'model' does not concern this pool alone: set it in args"),
        ({"num_replicas": 2}, "'num_replicas' does not concern this pool alone"),
        ({"tensor_parallel": 2}, "'tensor_parallel' does not concern this pool alone"),
        ([1], r"user_config of Target must hold settings, got \[1\]"),
    ],
)
def test_what_it_may_not_hold_is_named(user_config: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message.replace("?", r"\?")):
        with_user_config(_settings().target, user_config)


@pytest.mark.parametrize(
    ("deployment", "user_config", "message"),
    [
        ("Router", {"max_waitin": 3}, "unknown setting 'router.max_waitin'"),
        ("Gateway", {"max_waiting": 3}, "deployment 'Gateway' takes no user_config, Target, Drafter, Router do"),
        ("Target", None, "user_config of Target must hold settings, got None"),
    ],
)
def test_check_config_finds_a_wrong_one(tmp_path: Path, deployment: str, user_config: Any, message: str) -> None:
    path = tmp_path / "serve.yaml"
    application = {
        "import_path": "deployments:app",
        "deployments": [{"name": deployment, "user_config": user_config}],
    }
    path.write_text(yaml.safe_dump({"applications": [application]}))
    with pytest.raises(SettingsError, match=message):
        check_config(path)


class NoRouters:
    """A handle of a pool without replicas."""

    deployment_name = "Router"

    def broadcast(self, _: str) -> NoRouters:
        return self

    async def results_async(self) -> list[str]:
        return []


class Replica(Target):
    """Ray Serve awaits `__del__`; the garbage collector, which calls it here, does not."""

    def __del__(self) -> None:
        pass


async def test_a_target_starts_anew_and_lets_go_of_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, load = [], target_deployment._load
    monkeypatch.setattr(target_deployment, "_load", lambda *given: loaded.append(given[0].num_blocks) or load(*given))
    settings = parse_settings({"target": str(make_tiny_pair(tmp_path).target), "target.num_blocks": 64}).target
    replica = Replica.__new__(Replica)  # as Ray Serve does: the constructor is asynchronous
    await Target.__init__(replica, settings, None, NoRouters(), OPEN)
    with pytest.raises(Unavailable, match="user_config, which must not be null"):
        await replica.check_health()
    await replica.reconfigure({})
    await replica.check_health()
    assert (await replica.stats())["num_blocks"] == 64
    first = weakref.ref(replica._running[0]._model)
    gc.freeze()  # as Ray Serve does
    with pytest.raises(SettingsError):
        await replica.reconfigure({"num_blocks": 0})
    assert (await replica.stats())["num_blocks"] == 64, "a wrong one changes nothing"
    await replica.reconfigure({"num_blocks": 96})
    await replica.check_health()
    assert (await replica.stats())["num_blocks"] == 96
    assert first() is None
    await replica.reconfigure({"num_blocks": 96})  # the replica has got another rank, nothing else
    await asyncio.gather(replica.reconfigure({"num_blocks": 80}), replica.reconfigure({"num_blocks": 80}))
    assert (await replica.stats())["num_blocks"] == 80
    assert loaded == [64, 96, 80], "once at the start, and once for each change"
    await asyncio.wait_for(Target.__del__(replica), 10.0)
