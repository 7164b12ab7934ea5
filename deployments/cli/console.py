"""Writing to the terminal: text as it comes, one line per error, colours only where a terminal shows them."""

from __future__ import annotations

import logging
import sys

from rich.console import Console
from rich.text import Text


def error_line(message: str) -> None:
    """One line on stderr, whatever the message holds."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble(("error: ", "bold red"), " ".join(message.split())))


def note_line(message: str) -> None:
    """A remark on stderr, so that stdout holds nothing but the output itself."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(message, "dim"))


def show_log() -> None:
    """Shows what `dflash_core` logs as remarks."""
    logger = logging.getLogger("dflash_core")
    logger.setLevel(logging.INFO)
    logger.addHandler(_Remarks())


class _Remarks(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note_line(record.getMessage())


def write_piece(text: str) -> None:
    """Output text, shown at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
