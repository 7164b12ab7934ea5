"""`dflash check-config`: what a config file would start, or the one line that says why it would not."""

from __future__ import annotations

from pathlib import Path

import typer

from deployments.check_config import check_config
from deployments.cli.console import note_line


def check_file(path: Path) -> None:
    """Raises `SettingsError`."""
    for application in check_config(path):
        settings = application.settings
        drafter = settings.drafter.model if settings.uses_drafter else "no drafter"
        typer.echo(f"{path}: application {application.name!r} is fine: {settings.target.model} with {drafter}")
        for note in application.notes:
            note_line(f"note: {note}")
