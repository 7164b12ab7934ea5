"""The Triton kernels in Triton's interpreter, on the CPU: the `*_cases.py` in a process that interprets."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CASES = sorted(path.name for path in Path(__file__).parent.glob("*_cases.py"))


@pytest.mark.parametrize("cases", CASES)
def test_cases_in_the_interpreter(cases: str) -> None:
    path = str(Path(__file__).with_name(cases))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", path]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=280)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    summary = output.splitlines()[-1]
    assert re.fullmatch(r"\d+ passed(, \d+ warnings)? in .*", summary), f"not every case ran: {summary}"
