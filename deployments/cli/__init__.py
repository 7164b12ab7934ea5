"""The `dflash` command. Each subcommand is a module here; what it needs is imported when it runs."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """The console script's entry point."""
    from deployments.cli.app import run

    run()
