"""The Triton kernels in Triton's interpreter, on the CPU: the `*_cases.py` in a process that interprets."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "names", [("attention_cases", "commit_cases", "runner_cases"), ("sampling_cases", "ranking_cases")], ids=str
)
def test_cases_in_the_interpreter(names: tuple[str, ...]) -> None:
    cases = [str(Path(__file__).with_name(f"{name}.py")) for name in names]
    numpy_on_nan = "ignore::RuntimeWarning:triton.runtime.interpreter"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", numpy_on_nan, *cases]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=280)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    summary = output.splitlines()[-1]
    assert re.fullmatch(r"\d+ passed in .*", summary), f"not every case ran: {summary}"
