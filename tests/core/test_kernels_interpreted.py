"""The Triton kernels in Triton's interpreter, on the CPU: the `*_cases.py` in processes that interpret.

An interpreter takes one core for minutes: as many run at a time as there are cores.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
CASES = sorted(path.name for path in FOLDER.glob("*_cases.py"))
SLOW_CASES = [name for name in CASES if "pytest.mark.slow" in (FOLDER / name).read_text()]
QUICK_CASES = [name for name in CASES if "pytestmark = pytest.mark.slow" not in (FOLDER / name).read_text()]
QUICK, SLOW = "not slow", "slow"
TIMEOUT_S = 600.0  # of one process

Run = tuple[str, str]  # the file, and which of its cases
Runs = dict[Run, Future[subprocess.CompletedProcess[str]]]


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[Runs]:
    """Begun together, of the tests that were asked for; the first ones first."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as executor:
        yield {
            run: executor.submit(_run_cases, *run)
            for item in request.session.items
            if isinstance(item, pytest.Function) and item.path == Path(__file__)
            for run in [item.callspec.params["run"]]
        }
        executor.shutdown(cancel_futures=True)


@pytest.mark.parametrize("run", [(cases, QUICK) for cases in QUICK_CASES], ids=QUICK_CASES)
@pytest.mark.timeout(0)  # its process has one, and may have to wait for a core
def test_cases_in_the_interpreter(run: Run, runs: Runs) -> None:
    _check(runs[run].result())


@pytest.mark.slow
@pytest.mark.parametrize("run", [(cases, SLOW) for cases in SLOW_CASES], ids=SLOW_CASES)
@pytest.mark.timeout(0)
def test_slow_cases_in_the_interpreter(run: Run, runs: Runs) -> None:
    _check(runs[run].result())


def _run_cases(cases: str, mark: str) -> subprocess.CompletedProcess[str]:
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning:triton.runtime.interpreter", "-m", mark]
    command = [sys.executable, "-m", "pytest", *options, str(FOLDER / cases)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=TIMEOUT_S)


def _check(done: subprocess.CompletedProcess[str]) -> None:
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    summary = output.splitlines()[-1]
    expected = r"\d+ passed(, \d+ deselected)?(, \d+ warnings)? in .*"
    assert re.fullmatch(expected, summary), f"not every case ran: {summary}"
