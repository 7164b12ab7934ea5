"""What the benchmarks' command lines have in common: outputs, one line per error, results written as they come."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cluster.bench.machine import describe_machine
from dflash_core.errors import DFlashError, InvalidRequest

JsonPath = Annotated[Path | None, typer.Option("--json", help="Write all findings here.")]
PlotPath = Annotated[Path | None, typer.Option("--plot", help="Write a picture (PNG) here.")]
TimeLimit = Annotated[
    float | None, typer.Option(min=0.0, help="Seconds after which no further point is begun; default: none.")
]

_CLICK_ERROR: Any = typer.BadParameter.__mro__[2]  # click's, or where typer has its own copy of click, that one's


def run(main: Callable[..., None]) -> None:
    """Runs `main` as a command. What a user did wrong is one line on stderr: exit code 2 for flags, 1 for the rest."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    try:
        code = app(standalone_mode=False)
    except _CLICK_ERROR as error:
        fail(error.format_message(), 2)
    except DFlashError as error:
        fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    sys.exit(code)


def fail(message: str, code: int) -> None:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    sys.exit(code)


def console() -> Console:
    """A terminal has its width; a file or a pipe has room for every column."""
    found = Console()
    return found if found.is_terminal else Console(width=180)


@dataclass(slots=True)
class Record:
    """A benchmark's JSON. It is written after every finding, so that a run which is cut short leaves what it had.

    Raises `InvalidRequest` where the folder of one of the paths is not there.
    """

    json_path: Path | None
    plot_path: Path | None
    settings: dict[str, Any]
    machine: dict[str, Any] = field(default_factory=describe_machine)
    results: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for path in (self.json_path, self.plot_path):
            if path is not None and not path.absolute().parent.is_dir():
                raise InvalidRequest(f"cannot write {path}: its folder does not exist")

    def add(self, *results: dict[str, Any]) -> None:
        self.put([*self.results, *results])

    def put(self, results: Iterable[dict[str, Any]]) -> None:
        """In place of what was there."""
        self.results = list(results)
        self._write()

    def _write(self) -> None:
        if self.json_path is None:
            return
        ended = {"load_1m_at_the_end": os.getloadavg()[0]}
        report = {"machine": self.machine | ended, "settings": self.settings, "results": self.results}
        partial = self.json_path.with_name(self.json_path.name + ".partial")
        partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self.json_path)


class Deadline:
    """Says when no further point may begin."""

    def __init__(self, limit_s: float | None) -> None:
        self._end = None if limit_s is None else time.monotonic() + limit_s

    @property
    def is_over(self) -> bool:
        return self._end is not None and time.monotonic() >= self._end


def picked(given: Sequence[int] | None, default: Sequence[int]) -> tuple[int, ...]:
    """What flags that may be repeated say, in their order and once each."""
    return tuple(dict.fromkeys(given or default))
