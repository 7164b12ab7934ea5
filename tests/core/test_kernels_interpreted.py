"""The Triton kernels in Triton's interpreter, on the CPU: the `*_cases.py` in a process that interprets."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
CASES = sorted(path.name for path in FOLDER.glob("*_cases.py"))
SLOW_CASES = [name for name in CASES if "pytest.mark.slow" in (FOLDER / name).read_text()]
QUICK_CASES = [name for name in CASES if "pytestmark = pytest.mark.slow" not in (FOLDER / name).read_text()]


@pytest.mark.parametrize("cases", QUICK_CASES)
def test_cases_in_the_interpreter(cases: str) -> None:
    run_cases(cases, "not slow")


@pytest.mark.slow
@pytest.mark.parametrize("cases", SLOW_CASES)
def test_slow_cases_in_the_interpreter(cases: str) -> None:
    run_cases(cases, "slow")


def run_cases(cases: str, mark: str) -> None:
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning:triton.runtime.interpreter", "-m", mark]
    command = [sys.executable, "-m", "pytest", *options, str(FOLDER / cases)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=280)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    summary = output.splitlines()[-1]
    expected = r"\d+ passed(, \d+ deselected)?(, \d+ warnings)? in .*"
    assert re.fullmatch(expected, summary), f"not every case ran: {summary}"
