"""The whole benchmark on a tiny pair: every arm, the same output, JSON and picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import TinyPair, make_tiny_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return make_tiny_pair(tmp_path_factory.mktemp("pair"))


def _dflash(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from deployments.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=280)


def test_every_arm_writes_the_same(pair: TinyPair, tmp_path: Path) -> None:
    names = ("prompts.jsonl", "found.json", "found.png", "trace.json")
    prompts, found, picture, trace = (tmp_path / name for name in names)
    prompts.write_text('{"prompt": "def add(left"}\n{"prompt": "class Stack:\\n    def", "max_tokens": 9}\n')
    result = _dflash(
        *("bench", "--target", str(pair.target), "--drafter", str(pair.drafter), "--prompts", str(prompts)),
        *("--max-tokens", "12", "--tree-budget", "6", "--concurrency", "2", "--repeats", "1", "--one-thread"),
        *("--json", str(found), "--plot", str(picture), "--trace", str(trace), "--gpu-hour-price", "2.5"),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "without speculation" in result.stdout
    report = json.loads(found.read_text())
    arms = {(entry["temperature"], entry["arm"]): entry for entry in report["results"]}
    assert [arm for temperature, arm in arms if temperature == 0.0] == [
        "HF generate", "plain", "chain", "tree 6", "adaptive", "tree 8 raw", "tree 16 raw",
        "published chain", "published tree 8", "published tree 16",
    ]  # fmt: skip
    assert (1.0, "published tree 16") in arms
    for entry in arms.values():
        assert entry["num_identical"] == entry["num_outputs"] == 4, entry["arm"]  # each prompt twice, two at a time
        assert entry["num_tokens"] == 42
        assert all(0 < sample["timed_tokens"] <= 57 for sample in entry["samples"])  # 15 of them the lead-in's
        assert entry["tokens_per_second"] > 0
    assert arms[0.0, "plain"]["acceptance_length"] == 1.0
    assert arms[0.0, "plain"]["nodes_per_round"] == 0.0
    assert arms[0.0, "tree 6"]["acceptance_length"] >= arms[0.0, "chain"]["acceptance_length"] >= 1.0
    assert arms[0.0, "tree 6"]["stage_ms"]["round.verify"] > 0
    assert report["machine"]["torch version"].startswith("2.")
    assert [cell["temperature"] for cell in report["sweep"]["cells"]] == [0.0, 1.0]
    assert {mean["arm"] for mean in report["sweep"]["adaptive_over_fixed"]} == {
        "plain", "chain", "tree 6", "published chain", "published tree 8", "published tree 16",
    }  # fmt: skip
    names = {event["name"] for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"adaptive", "tree 6", "verify", "draft", "plan", "commit", "forward"} <= names
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_prompt_that_does_not_fit_is_one_line(pair: TinyPair, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "def", "max_tokens": 100000}\n')
    result = _dflash(
        "bench", "--target", str(pair.target), "--drafter", str(pair.drafter), "--prompts", str(prompts)
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("error: prompt 1 has ")
