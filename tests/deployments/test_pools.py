"""How many replicas a pool has and where they may run: the settings, their errors, and what Ray is told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray._private.label_utils import validate_label_selector

from deployments.placement import actor_options, place_models, placement_options
from deployments.settings import SettingsError, parse_settings


def test_labels_are_written_as_ray_writes_them() -> None:
    words = parse_settings({"target.labels": "ray.io/node-group=targets, zone=in(a, b),disk=!hdd"}).target.labels
    assert words == {"ray.io/node-group": "targets", "zone": "in(a, b)", "disk": "!hdd"}
    assert parse_settings({"drafter": {"labels": {"example.com/pool": "x"}}}).drafter.labels == {
        "example.com/pool": "x"
    }
    assert parse_settings({"router.labels.pool": "head"}).router.labels == {"pool": "head"}


LABEL_LETTERS = st.text("aZ0-_./!in(), ", max_size=8)


@given(LABEL_LETTERS, LABEL_LETTERS)
def test_what_passes_passes_in_ray_too(key: str, selector: str) -> None:
    try:
        labels = parse_settings({"target": {"labels": {key: selector}}}).target.labels
    except SettingsError:
        return
    assert validate_label_selector(dict(labels)) is None


def test_replicas_are_placed_by_label_and_resource() -> None:
    pool = parse_settings({"target.labels": "pool=targets", "target.resources.rack": "1"}).target
    assert actor_options(pool) == {"num_cpus": 0.4, "resources": {"rack": 1.0}, "label_selector": {"pool": "targets"}}
    assert placement_options(pool) == {}


def test_each_rank_is_placed_by_label() -> None:
    pool = parse_settings({"target.labels": "pool=targets", "target.tensor_parallel": 2}).target
    assert "label_selector" not in actor_options(pool)
    assert placement_options(pool)["placement_group_bundle_label_selector"] == [{"pool": "targets"}] * 2


def test_gpus_are_shared_by_as_many_as_there_may_be() -> None:
    settings = place_models(parse_settings({"target.max_replicas": 3}), 2)
    assert actor_options(settings.target)["num_gpus"] == actor_options(settings.drafter)["num_gpus"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"target.num_replicas": 2, "target.max_replicas": 4},
            "setting 'target': num_replicas=2 is fixed and max_replicas=4 automatic: give one",
        ),
        (
            {"drafter.min_replicas": 3, "drafter.max_replicas": 2},
            "setting 'drafter': min_replicas=3 exceeds max_replicas=2",
        ),
        ({"router.min_replicas": 2}, "setting 'router': min_replicas=2 needs max_replicas: the number is fixed"),
        ({"drafter.max_lag_ms": 5}, "setting 'drafter': max_lag_ms=5.0 needs max_replicas: the number is fixed"),
        (
            {"target.labels": "pool"},
            "setting 'target.labels': must be KEY=VALUE,KEY=VALUE with different keys, got 'pool'",
        ),
        (
            {"target.labels": "pool=a b"},
            "setting 'target.labels': label 'pool' must be VALUE, !VALUE, in(A,B) or !in(A,B), got 'a b'",
        ),
        (
            {"target.labels": "a/b/c=x"},
            "setting 'target.labels': 'a/b/c' is not the name of a node label, as pool or example.com/pool",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings(arguments)
    assert str(caught.value) == message


def test_zero_replicas_are_refused() -> None:
    for key in ("target.min_replicas", "drafter.max_replicas", "router.num_replicas"):
        with pytest.raises(SettingsError, match="greater than or equal to 1"):
            parse_settings({key: 0})
