"""Runs a benchmark as a user would, in a process in which the server's own libraries cannot be imported."""

from __future__ import annotations

import importlib
import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from benchmarks import command

ROOT = Path(__file__).resolve().parents[2]
ABSENT = ("ray", "fastapi", "starlette", "uvicorn", "grpc", "deployments", "tests")

_CODE = """
import runpy, sys
for name in {absent!r}:
    sys.modules[name] = None
sys.argv = {argv!r}
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    module = f"benchmarks.{name}"
    code = _CODE.format(absent=ABSENT, argv=[module, *arguments], module=module)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)


def error_of(name: str, *arguments: str) -> str:
    """The one line that a wrong command writes, in this process."""
    written = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [f"benchmarks.{name}", *arguments]),
        redirect_stdout(written),
        redirect_stderr(written),
        pytest.raises(SystemExit) as exit_,
    ):
        command.run(importlib.import_module(f"benchmarks.{name}.__main__").main)
    assert exit_.value.code in (1, 2)
    (line,) = written.getvalue().splitlines()
    return line


def report_of(name: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """Its JSON; the picture must be there too."""
    found, picture = folder / "found.json", folder / "found.png"
    done = run(name, *arguments, "--json", str(found), "--plot", str(picture))
    assert done.returncode == 0, done.stdout + done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    report: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
    assert report["machine"]["torch version"]
    assert "commit" in report["machine"]
    return report
