"""A benchmark from the first progress bar to its tables, JSON and plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cluster.bench.benchmark import Benchmark, BenchSettings
from cluster.bench.machine import describe_machine
from cluster.bench.plot import save_plot
from cluster.bench.prompts import Prompt
from cluster.bench.report import (
    as_json,
    cells_of,
    means_table,
    result_table,
    savings_line,
    stage_table,
    sweep_table,
)
from cluster.bench.samples import Sample
from cluster.bench.summary import Row, summarise
from cluster.bench.sweep import sweep_of
from cluster.router.timeline import Timeline
from dflash_core.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where a benchmark's findings go, besides the terminal.

    Raises `InvalidRequest` where the folder of a file is not there.
    """

    json_file: Path | None
    plot_file: Path | None
    trace_file: Path | None = None
    gpu_hour_price: float | None = None

    def __post_init__(self) -> None:
        for path in (self.json_file, self.plot_file, self.trace_file):
            if path is not None and not path.absolute().parent.is_dir():
                raise InvalidRequest(f"cannot write {path}: its folder does not exist")


def run_benchmark(
    settings: BenchSettings, prompts: Sequence[Prompt], outputs: Outputs, described: Mapping[str, Any]
) -> None:
    """`described` goes to the JSON's settings. Raises what loading raises, and `InvalidRequest`."""
    machine = describe_machine()
    errors = Console(stderr=True)
    with errors.status("loading the models"):
        benchmark = Benchmark(settings, prompts)
    timeline = None if outputs.trace_file is None else Timeline()
    samples = _measure(benchmark, errors, timeline)
    rows = summarise(samples)
    _show(_wide_console(), rows, samples, outputs.gpu_hour_price)
    if outputs.json_file is not None:
        found = as_json(machine, settings.as_dict() | dict(described), rows, samples, outputs.gpu_hour_price)
        outputs.json_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if outputs.trace_file is not None and timeline is not None:
        outputs.trace_file.write_text(json.dumps(timeline.as_chrome_trace()) + "\n", encoding="utf-8")
    if outputs.plot_file is not None:
        save_plot(outputs.plot_file, rows)


def _measure(benchmark: Benchmark, console: Console, timeline: Timeline | None) -> list[Sample]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    samples = []
    with benchmark, Progress(*columns, console=console) as progress:
        task = progress.add_task("warming up", total=benchmark.num_warm_ups)
        for arm in benchmark.warm_up():
            progress.update(task, advance=1, description=f"warming up {arm.name}")
        progress.update(task, description="warmed up")
        task = progress.add_task("measuring", total=benchmark.plan.num_samples)
        for sample in benchmark.run(timeline):
            samples.append(sample)
            progress.update(task, advance=1, description=f"measuring {sample.arm.name}")
        progress.update(task, description="measured")
    return samples


def _wide_console() -> Console:
    """A terminal has its width; a file or a pipe has room for every column."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def _show(console: Console, rows: Sequence[Row], samples: Sequence[Sample], price: float | None) -> None:
    for cell in cells_of(rows):
        console.print(result_table(cell, rows, price))
    for cell in cells_of(rows):
        console.print(stage_table(cell, rows))
    sweep = sweep_of(rows, samples)
    if sweep is not None:
        console.print(sweep_table(sweep))
        console.print(means_table(sweep))
    if price is not None:
        for cell in cells_of(rows):
            line = savings_line(cell, rows, price)
            if line is not None:
                console.print(line)
