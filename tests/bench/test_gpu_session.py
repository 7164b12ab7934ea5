"""The script for a GPU machine, with a stand-in for the interpreter: order, failures, time limits, summary."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_session.sh"

# Writes what it was called with; fails as `attention`, hangs as the 8B round.
PYTHON = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$*" in
    *benchmarks.attention*) echo broken; exit 3 ;;
    *qwen3-8b*) exec sleep 60 ;;
esac
echo fine
"""


def session(folder: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    python, calls = folder / "python", folder / "calls"
    python.write_text(PYTHON)
    python.chmod(0o755)
    calls.touch()
    environment = os.environ | {"PYTHON": str(python), "CALLS": str(calls), "ROUND_8B_S": "1", "DECODE_S": "100"}
    done = subprocess.run(
        [str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    return done, calls.read_text().splitlines()


def test_each_step_runs_whatever_the_others_do(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    done, calls = session(tmp_path, str(folder))
    assert [call.split()[1] for call in calls] == [
        "pytest",
        "benchmarks.attention",
        "benchmarks.round",
        "benchmarks.round",
        "benchmarks.decode",
        "benchmarks.prefill",
    ]
    assert f"--work {folder}/pair --json {folder}/decode.json --plot {folder}/decode.png --time-limit-s 40" in calls[4]
    assert (folder / "attention.log").read_text() == "broken\n"
    _, summary = done.stdout.split("== summary")
    outcomes = [line.split()[:2] for line in summary.splitlines()[1:]]
    assert outcomes == [
        ["tests", "done"],
        ["attention", "failed"],
        ["round-8b", "out"],
        ["round-4b", "done"],
        ["decode", "done"],
        ["prefill", "done"],
    ]
    assert done.returncode == 1


def test_some_steps_alone(tmp_path: Path) -> None:
    done, calls = session(tmp_path, str(tmp_path / "results"), "prefill", "tests")
    assert [call.split()[1] for call in calls] == ["pytest", "benchmarks.prefill"]
    assert done.returncode == 0


def test_a_wrong_step_is_one_line(tmp_path: Path) -> None:
    done, calls = session(tmp_path, str(tmp_path / "results"), "lunch")
    assert done.returncode == 2
    assert not calls
    assert done.stderr.startswith("no step lunch; usage:")
    assert len(done.stderr.splitlines()) == 1
