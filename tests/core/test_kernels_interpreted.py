"""The Triton kernels in Triton's interpreter, on the CPU: the `*_cases.py` in a process that interprets."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CASES = [
    pytest.param(("attention_cases.py", "commit_cases.py"), id="kernels"),
    pytest.param(("runner_cases.py",), id="runners"),
    pytest.param(("compile_cases.py",), id="traces", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("names", CASES)
def test_cases_in_the_interpreter(names: tuple[str, ...]) -> None:
    cases = [str(Path(__file__).with_name(name)) for name in names]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *cases]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=280)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    summary = output.splitlines()[-1]
    assert re.fullmatch(r"\d+ passed in .*", summary), f"not every case ran: {summary}"
