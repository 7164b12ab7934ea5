"""Compiled functions are kept on disk, and never outlive the helpers that they were compiled with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from numba.core.errors import TypingError

from dflash_core.jit import jit_borrowing

Doubles = npt.NDArray[np.float64]
CALLED = """
from dflash_core.jit import jit

@jit
def called() -> int:
    return {number}
"""
CALLING = """
from called import called
from dflash_core.jit import jit

@jit
def calling() -> int:
    return called()

print(calling(), sum(calling.stats.cache_hits.values()))
"""


def run(folder: Path, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, str(folder / "calling.py")],
        env=clean | environment | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize("has_cache_dir", [False, True])
def test_a_helper_that_changes_is_compiled_anew(has_cache_dir: bool, tmp_path: Path) -> None:
    sources, cache = tmp_path / "sources", tmp_path / "cache"
    sources.mkdir()
    environment = {"NUMBA_CACHE_DIR": str(cache)} if has_cache_dir else {}
    (sources / "calling.py").write_text(CALLING)
    (sources / "called.py").write_text(CALLED.format(number=1))
    assert run(sources, **environment) == "1 0"
    assert run(sources, **environment) == "1 1", "nothing has changed"
    (sources / "called.py").write_text(CALLED.format(number=2))
    assert run(sources, **environment) == "2 0"
    assert cache.exists() == has_cache_dir


def test_who_borrows_makes_no_array_and_returns_none() -> None:
    """Nobody would count the references to it."""

    @jit_borrowing
    def make(size: int) -> float:
        return float(np.zeros(size).sum())

    @jit_borrowing
    def give(array: Doubles) -> Doubles:
        return array[1:]

    @jit_borrowing
    def take(array: Doubles) -> float:
        return float(array[1:][0])

    with pytest.raises(TypingError):
        make(3)
    with pytest.raises(TypingError):
        give(np.arange(3.0))
    assert take(np.arange(3.0)) == 1.0
