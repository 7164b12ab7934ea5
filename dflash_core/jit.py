"""`jit`: numba's compiler with this project's settings, typed so that `mypy --strict` sees the plain function."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

_Function = TypeVar("_Function", bound=Callable[..., object])


def jit(function: _Function) -> _Function:
    """Compiles `function` on its first call, without the GIL, and caches the machine code on disk.

    numba's cache notices a change of the function's own file only, not of a function it calls from another file: so a
    kernel and the helpers it calls live in one file.
    """
    return cast(_Function, numba.njit(cache=True, nogil=True)(function))
