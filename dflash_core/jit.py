"""`jit`: numba's compiler with this project's settings, typed so that `mypy --strict` sees the plain function."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

_Function = TypeVar("_Function", bound=Callable[..., object])
_SETTINGS = cast(Any, numba.config)
_njit = cast(Any, numba.njit)  # whose types leave out `_nrt`: whether references are counted


def jit(function: _Function) -> _Function:
    """Compiles `function` on its first call, without the GIL, and keeps the machine code on disk.

    Machine code has that of the functions it calls in it. numba's own cache looks at the outer function's file only,
    and would go on with what it compiled from helpers that have changed since. So here it has a folder for each state
    of the sources beside the function: what compiled functions call is in the same folder as they.
    """
    return _compiled(function, counts_references=True)


def jit_borrowing(function: _Function) -> _Function:
    """As `jit`, for what makes no array and returns none: it borrows those that it is given, and their parts.

    Counting references takes two locked instructions per array and call, which was a third of the time of a search. A
    function that would make an array does not compile.
    """
    return _compiled(function, counts_references=False)


def jit_reassociating(function: _Function) -> _Function:
    """As `jit_borrowing`, where sums may be taken in any order: as written, each addition waits for the one before."""
    return _compiled(function, counts_references=False, fastmath={"reassoc"})


def _compiled(function: _Function, counts_references: bool, fastmath: set[str] | bool = False) -> _Function:
    given = _SETTINGS.CACHE_DIR
    _SETTINGS.CACHE_DIR = str(_cache_folder(Path(function.__code__.co_filename).parent, given))
    try:
        return cast(_Function, _njit(cache=True, nogil=True, _nrt=counts_references, fastmath=fastmath)(function))
    finally:
        _SETTINGS.CACHE_DIR = given


@functools.cache
def _cache_folder(sources: Path, given: str) -> Path:
    """`given`: what the user has set as `NUMBA_CACHE_DIR`, or nothing. Else beside the sources, as Python's own."""
    state = hashlib.sha256()
    for path in (Path(__file__), *sorted(sources.glob("*.py"))):
        state.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    if given:
        parent = Path(given)
    elif os.access(sources, os.W_OK):
        parent = sources / "__pycache__"
    else:
        parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dflash-serve"
    return parent / f"numba-{state.hexdigest()[:16]}"
