"""Loading a model in a replica: what is logged meanwhile, and how a failure is said."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from dflash_core.errors import DFlashError

logger = logging.getLogger("ray.serve")

_Runner = TypeVar("_Runner")


def start_model(kind: str, load: Callable[[], _Runner]) -> _Runner:
    """Runs `load`, after what an earlier runner of this process held is free.

    What `dflash_core` logs goes where Ray Serve's own lines of this replica go: to its log file, and to the terminal of
    `serve run`. An error that has a name is logged in one line before it is raised: Ray Serve then prints its
    traceback, tries again twice and reports that the deployment failed.
    """
    # Here, since it brings torch: the builder imports this module too.
    from dflash_core.runners.devices import release_memory

    _log_like_serve()
    release_memory()
    try:
        return load()
    except DFlashError as error:
        logger.error("%s cannot start: %s", kind, error.message)
        raise


def _log_like_serve() -> None:
    ours = logging.getLogger("dflash_core")
    ours.setLevel(logger.level)
    ours.propagate = False
    for handler in logger.handlers:
        if handler not in ours.handlers:
            ours.addHandler(handler)
