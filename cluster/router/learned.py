"""What a router has learned of a pair, kept in a folder, so that the next one begins where it ended."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from cluster.router.tree_planner import TreePlanner
from dflash_core.errors import DFlashError

logger = logging.getLogger(__name__)

_EVERY_S = 15.0


class LearnedStore:
    """One file per pair of target weights and drafter projection. Nothing of it can change a token.

    Routers may share the folder: a file is replaced as a whole, and whoever writes last wins.
    """

    def __init__(self, folder: Path, planner: TreePlanner) -> None:
        self._folder = folder
        self._planner = planner
        self._path: Path | None = None
        self._task: asyncio.Task[None] | None = None

    def open(self, fingerprint: str) -> None:
        """Loads what is known of the pair, and saves it from now on. Only the first call counts.

        A file that cannot be used is told in the log and begun anew: it is worth a minute of learning.
        """
        if self._path is not None:
            return
        self._path = self._folder / f"{re.sub(r'[^A-Za-z0-9_-]+', '-', fingerprint)}.json"
        try:
            self._planner.restore(json.loads(self._path.read_text(encoding="utf-8")))
            logger.info("what was learned of this pair is taken from %s", self._path)
        except FileNotFoundError:
            logger.info("nothing was learned of this pair yet; it will be kept in %s", self._path)
        except (OSError, ValueError, DFlashError) as error:
            logger.warning("cannot use %s, learning begins anew: %s", self._path, error)
        self._task = asyncio.create_task(self._save_again_and_again(), name="learned store")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self._save()

    async def _save_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            await self._save()

    async def _save(self) -> None:
        assert self._path is not None, "saved before it was opened"
        try:
            await asyncio.to_thread(_replace, self._path, self._planner.as_dict())
        except OSError as error:
            logger.warning("cannot keep what was learned in %s: %s", self._path, error)


def _replace(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(json.dumps(content), encoding="utf-8")
    os.replace(partial, path)
