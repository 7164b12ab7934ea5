"""Ray Serve deployments: the application `deployments:app`, its settings, and the four kinds of replicas."""

from __future__ import annotations

from typing import Any

__all__ = ["app"]


def __getattr__(name: str) -> Any:
    """Loads the builder on first use: a replica that imports one of our modules must not pay for the others."""
    if name == "app":
        from deployments.builder import app

        return app
    raise AttributeError(f"module 'deployments' has no attribute {name!r}")
