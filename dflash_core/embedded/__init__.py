"""The pair of models that ships with the package: a target of 6 M parameters and its DFlash drafter."""

from __future__ import annotations

from pathlib import Path

PREFIX = "embedded:"
TARGET_NAME = "embedded:stdlib-6m"
DRAFTER_NAME = "embedded:stdlib-6m-dflash"

_FOLDERS = {TARGET_NAME: "target", DRAFTER_NAME: "drafter"}


def embedded_folder(name: str) -> Path | None:
    """Where the embedded model `name` lies in the package; None for a name that is none of them."""
    folder = _FOLDERS.get(name)
    return None if folder is None else Path(__file__).parent / folder
