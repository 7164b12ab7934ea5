"""The router, its transports, and the engine that runs them in one process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.engine import LLMInferenceEngine
    from cluster.outputs import DecodingOptions, GenerationResult
    from cluster.requests import Strategy

__all__ = ["DecodingOptions", "GenerationResult", "LLMInferenceEngine", "Strategy"]

_HOMES = {
    "LLMInferenceEngine": "engine",
    "DecodingOptions": "outputs",
    "GenerationResult": "outputs",
    "Strategy": "requests",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
