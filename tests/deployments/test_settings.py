"""Settings from the command line and from files: what they become, and the one line that refuses them."""

from __future__ import annotations

from typing import Any

import click
import pytest

from cluster.requests import Strategy
from deployments.placement import actor_options, place_models, placement_options
from deployments.settings import EMBEDDED_DRAFTER, EMBEDDED_TARGET, SettingsError, parse_settings, valid_keys


def test_defaults_are_the_embedded_pair_and_fit_two_cores() -> None:
    settings = parse_settings({})
    assert (settings.target.model, settings.drafter.model) == (EMBEDDED_TARGET, EMBEDDED_DRAFTER)
    assert settings.model_name == "stdlib-6m"
    pools = (settings.target, settings.drafter, settings.router, settings.gateway)
    assert sum(pool.num_cpus * pool.num_replicas for pool in pools) <= 2


def test_the_command_line_form_and_the_nested_form_agree() -> None:
    flat = {
        "target": "Qwen/Qwen3-8B",
        "drafter": "z-lab/Qwen3-8B-DFlash-b16",
        "tree_budget": "128",
        "target.num_replicas": "2",
        "drafter.resources.pool_a": "0.5",
        "strategy": "block_diffusion",
        "grpc_port": "off",
    }
    nested = {
        "target": {"model": "Qwen/Qwen3-8B", "num_replicas": 2},
        "drafter": {"model": "z-lab/Qwen3-8B-DFlash-b16", "resources": {"pool_a": 0.5}},
        "tree_budget": 128,
        "strategy": "block_diffusion",
        "grpc_port": None,
    }
    settings = parse_settings(flat)
    assert settings == parse_settings(nested)
    assert settings.strategy is Strategy.CHAIN
    assert settings.grpc_port is None
    assert settings.model_name == "Qwen/Qwen3-8B"


def test_a_served_name_comes_from_the_last_part_of_a_path() -> None:
    assert parse_settings({"target": "/models/mine"}).model_name == "mine"
    assert parse_settings({"target": "/models/mine", "served_model_name": "m"}).model_name == "m"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"targte": "x"}, ["'targte'", "'target'"]),
        ({"tree_budgt": "3"}, ["'tree_budgt'", "'tree_budget'"]),
        ({"target.tensor_paralel": "2"}, ["'target.tensor_paralel'", "'target.tensor_parallel'"]),
        ({"max_tree_rows": "2"}, ["'max_tree_rows'", "'target.max_tree_rows'"]),
        ({"target": {"modle": "x"}}, ["'target.modle'", "'target.model'"]),
        ({"target.tensor_parallel": "2", "target.num_gpus": "0.5"}, ["tensor_parallel=2", "num_gpus=0.5"]),
        ({"tree_budget": "-1"}, ["'tree_budget'", "'-1'"]),
        ({"tree_budget": "many"}, ["'tree_budget'", "'many'"]),
        ({"tree_budget": "900"}, ["900", "max_tree_rows=512"]),
        ({"strategy": "magic"}, ["'strategy'", "'magic'", "block_diffusion_draft_trees"]),
        ({"data_plane_ports": "5"}, ["data_plane_ports", "'5'"]),
        ({"data_plane_ports": "9-5"}, ["data_plane_ports", "'9-5'"]),
        ({"router": "3"}, ["'router'", "'3'"]),
        ({"target": "x", "target.model": "y"}, ["twice", "'x'", "'y'"]),
        ({"tree_budget": "1", "tree_budget.x": "2"}, ["tree_budget"]),
        ({"target.model": ""}, ["target.model"]),
        ({"target.num_blocks": "7", "target.kv_cache_bytes": "99"}, ["'target'", "num_blocks 7", "kv_cache_bytes 99"]),
        ({"drafter.memory_fraction": "1.5"}, ["'drafter.memory_fraction'", "'1.5'"]),
    ],
)
def test_a_wrong_setting_is_one_line_with_key_and_value(arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings(arguments)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert isinstance(caught.value, click.ClickException)
    assert isinstance(caught.value, ValueError)
    assert caught.value.exit_code == 1
    assert caught.value.format_message() == message


def test_every_setting_is_described() -> None:
    assert [key for key, description in valid_keys() if not description] == []


def test_models_share_the_gpus_there_are() -> None:
    settings = parse_settings({"target.num_replicas": 2})
    assert place_models(settings, 0).target.device == "cpu"
    assert "num_gpus" not in actor_options(place_models(settings, 0).target)
    assert actor_options(place_models(settings, 8).target)["num_gpus"] == 1
    shared = place_models(parse_settings({}), 1)
    assert actor_options(shared.target)["num_gpus"] == actor_options(shared.drafter)["num_gpus"] == 0.5


def test_ranks_of_a_target_get_a_bundle_each_and_share_no_gpu() -> None:
    assert placement_options(parse_settings({}).target) == {}
    settings = parse_settings({"target.tensor_parallel": 2, "target.resources.rack": "1"})
    enough = place_models(settings, 3)
    assert placement_options(enough.target) == {"placement_group_bundles": [{"CPU": 0.4, "GPU": 1.0, "rack": 1.0}] * 2}
    few = place_models(settings, 2)
    assert (few.target.num_gpus, few.drafter.num_gpus) == (0.75, 0.25)
    on_cpus = place_models(settings, 0).target
    assert placement_options(on_cpus) == {"placement_group_bundles": [{"CPU": 0.4, "rack": 1.0}] * 2}


def test_explicit_places_are_kept() -> None:
    settings = parse_settings({"drafter.device": "cpu", "target.device": "cuda", "target.num_gpus": "0.25"})
    placed = place_models(settings, 4)
    assert (placed.drafter.device, placed.target.device) == ("cpu", "cuda")
    assert actor_options(placed.target)["num_gpus"] == 0.25
    assert place_models(settings, 0).target.device == "cuda"
    options = actor_options(parse_settings({"target.resources.rack": "1", "target.memory_mib": "10"}).target)
    assert options["resources"] == {"rack": 1.0}
    assert options["memory"] == 10 * 2**20
