"""How far the reading of a model is: a bar on a terminal, a few log lines elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from dflash_core.units import bytes_text

logger = logging.getLogger(__name__)

BAR_FROM_BYTES = 64 << 20  # less is read before anybody could look at a bar
SECONDS_BETWEEN_LINES = 10.0

Advance = Callable[[int], None]


@contextmanager
def load_progress(what: str, total_bytes: int) -> Iterator[Advance]:
    """Yields a function to be called with the bytes of each tensor that has arrived.

    What is logged is at level INFO, so that only who asks for it, and the replicas of a cluster, see it. The bar goes
    to stderr and vanishes when it is full.
    """
    logger.info("loading %s: %s", what, bytes_text(total_bytes))
    started = time.monotonic()
    console = Console(stderr=True)
    if console.is_terminal and total_bytes >= BAR_FROM_BYTES:
        with _bar(console) as bar:
            task = bar.add_task(what, total=total_bytes)
            yield lambda num_bytes: bar.advance(task, num_bytes)
    else:
        yield _lines(what, total_bytes, started)
    logger.info("loaded %s: %s in %.1f s", what, bytes_text(total_bytes), time.monotonic() - started)


def _bar(console: Console) -> Progress:
    columns = (
        TextColumn("loading {task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True)


def _lines(what: str, total_bytes: int, started: float) -> Advance:
    done, last = 0, started

    def advance(num_bytes: int) -> None:
        nonlocal done, last
        done += num_bytes
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            logger.info(
                "loading %s: %s of %s after %.0f s", what, bytes_text(done), bytes_text(total_bytes), now - started
            )

    return advance
