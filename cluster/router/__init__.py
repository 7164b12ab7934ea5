"""The router: sequence state and the round loop, *plan → verify → commit → draft*, over any transport.

Torch-free. `Router` is the way in; `RouterSettings` says how it schedules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.router.router import Router
    from cluster.router.settings import RouterSettings
    from cluster.router.timings import RoundTimings

__all__ = ["RoundTimings", "Router", "RouterSettings"]

_HOMES = {"Router": "router", "RouterSettings": "settings", "RoundTimings": "timings"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
