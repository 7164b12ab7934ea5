"""`serve run deployments:app` and `dflash check-config` with what is wrong: one clear line, exit code 1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.check_config import check_config, check_models
from deployments.settings import SettingsError, parse_settings
from tests.tiny import make_tiny_pair

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "serve_config.yaml"


def _serve_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ray.serve.scripts", "run", "deployments:app", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, env=dict(os.environ))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["targte=x"], ["targte", "'target'"]),
        (["tree_budget=many"], ["tree_budget", "many"]),
        (["target=/no/such/folder"], ["target.model", "/no/such/folder"]),
    ],
)
def test_a_wrong_argument_ends_with_one_line_and_exit_code_1(arguments: list[str], words: list[str]) -> None:
    result = _serve_run(*arguments)
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert "Traceback" not in result.stderr + result.stdout
    assert all(word in line for word in words)


def test_a_pair_that_does_not_fit_is_refused_before_anything_starts(tmp_path: Path) -> None:
    pair = make_tiny_pair(tmp_path / "one")
    other = make_tiny_pair(tmp_path / "two", hidden_size=48, head_dim=12)
    check_models(parse_settings({"target": str(pair.target), "drafter": str(pair.drafter)}))
    with pytest.raises(SettingsError) as caught:
        check_models(parse_settings({"target": str(pair.target), "drafter": str(other.drafter)}))
    assert "\n" not in str(caught.value)
    assert all(value in str(caught.value) for value in ("hidden_size", "48", "32"))
    check_models(parse_settings({"target": str(pair.target), "drafter": str(other.drafter), "strategy": "none"}))


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no config"):
        check_models(parse_settings({"target": str(tmp_path)}))
    missing = parse_settings({"target": str(tmp_path / "missing"), "strategy": "none"})
    check_models(missing)  # another machine may have it
    with pytest.raises(SettingsError, match="missing"):
        check_models(missing, must_be_here=True)


def test_the_shipped_config_file_says_the_defaults() -> None:
    (application,) = check_config(CONFIG)
    assert application.name == "default"
    assert application.settings == parse_settings({})
    assert application.notes == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("applications: [", ["not valid YAML"]),
        ("applications: []", ["deployments:app"]),
        ("applications: 3", ["applications"]),
        ("[]", ["dictionary"]),
        (CONFIG.read_text().replace("tree_budget", "tree_budgt"), ["'default'", "tree_budgt", "'tree_budget'"]),
        (CONFIG.read_text().replace("num_replicas: 1", "num_replicas: 0"), ["num_replicas", "0"]),
        (CONFIG.read_text().replace("route_prefix", "rout_prefix"), ["rout_prefix", "'route_prefix'"]),
        (CONFIG.read_text().replace("http_options", "htp_options"), ["htp_options", "'http_options'"]),
    ],
)
def test_a_wrong_config_file_is_one_line(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        check_config(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert all(word in message for word in words), message


def test_a_missing_config_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        check_config(tmp_path / "none.yaml")


def test_notes_say_what_has_no_effect(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    text = CONFIG.read_text().replace("- deployments.grpc_api.add_public_services", "[]")
    path.write_text(text.replace("tree_budget: auto", "http_port: 8001"))
    (application,) = check_config(path)
    assert len(application.notes) == 2


@pytest.mark.slow
def test_settings_and_gateway_import_no_torch() -> None:
    code = (
        "import json, sys; import deployments; assert 'ray' not in sys.modules; "
        "import deployments.gateway, deployments.router, deployments.builder; "
        "print(json.dumps([name for name in ('torch', 'transformers') if name in sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == []
