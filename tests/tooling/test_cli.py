"""The `dflash` command without a server: version, errors, generation in this process."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.tiny import TinyPair, make_tiny_pair

ROOT = Path(__file__).resolve().parents[2]


def _dflash(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    code = "from deployments.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=280
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return make_tiny_pair(tmp_path_factory.mktemp("pair"))


def test_version() -> None:
    result = _dflash("--version")
    assert (result.returncode, result.stdout) == (0, f"dflash-serve {version('dflash-serve')}\n")


def test_help_lists_the_commands_without_colours() -> None:
    result = _dflash("--help")
    assert result.returncode == 0
    assert "\x1b" not in result.stdout
    for command in ("generate", "complete", "bench", "check-config"):
        assert re.search(rf"\b{command}\b", result.stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("complete", "def", "--server", "http://127.0.0.1:9"), "error: http://127.0.0.1:9: "),
        (("complete", "def", "--transport", "grpc", "--server", "127.0.0.1:9"), "error: 127.0.0.1:9: "),
        (("complete", "def", "--server", "nonsense"), "error: nonsense: "),
        (("generate", "def", "--target", "/nowhere"), "error: --target /nowhere needs its --drafter"),
        (("generate", "def", "--target", "/nowhere", "--strategy", "none"), "error: no checkpoint at /nowhere"),
        (("check-config", "/nowhere.yaml"), "error: /nowhere.yaml: "),
        (("bench", "--prompts", "/nowhere.jsonl"), "error: cannot read the prompts file /nowhere.jsonl"),
        (("bench", "--plot", "/nowhere/plot.png"), "error: cannot write /nowhere/plot.png"),
    ],
)
def test_an_error_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = _dflash(*arguments)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert "\x1b" not in result.stderr


def test_generate_streams_what_the_strategies_agree_on(pair: TinyPair) -> None:
    common = ("--target", str(pair.target), "--max-tokens", "12", "--temperature", "0.8", "--seed", "3")
    drafted = _dflash("generate", "-", "--drafter", str(pair.drafter), *common, "--stats", stdin="def add(")
    plain = _dflash("generate", "def add(", "--strategy", "none", *common, "--verbose")
    assert drafted.returncode == plain.returncode == 0, drafted.stderr + plain.stderr
    assert drafted.stdout == plain.stdout != "\n"
    assert re.search(r"^12 tokens in \d+ rounds, \d+ tree nodes verified; ", drafted.stderr, re.MULTILINE)
    assert f"\nmemory of target {pair.target} on cpu:\n  weights  " in plain.stderr
    assert "memory of" not in drafted.stderr


def test_the_readme_s_config_file_is_fine() -> None:
    result = _dflash("check-config", "serve_config.yaml")
    assert result.returncode == 0, result.stderr
    assert "application 'default' is fine" in result.stdout


def test_a_wrong_key_in_a_config_file_is_one_line(tmp_path: Path) -> None:
    text = (ROOT / "serve_config.yaml").read_text(encoding="utf-8").replace("tree_budget:", "tree_budgt:")
    path = tmp_path / "wrong.yaml"
    path.write_text(text, encoding="utf-8")
    result = _dflash("check-config", str(path))
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "tree_budgt" in result.stderr
    assert "tree_budget" in result.stderr
