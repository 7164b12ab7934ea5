"""`python -m benchmarks.round --json found.json --plot found.png`; a small model where there is no GPU.

What is timed is the call of `TargetRunner.run_round` until its result is there, context features for a drafter
included, and for a drafter `append_context` of a few tokens' features and `draft`. Weights are random and made on the
device; the target's context is filled by real prefill rounds, the drafter's and the reference's with random numbers.
Trees are random and nothing of them is accepted, but where the table says so. × limit is over the larger of two times:
bytes that must be read or written over the copy rate, and operations over the rate of large matrix products.
"""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import torch
import typer
from rich.progress import Progress

from benchmarks.command import Deadline, JsonPath, PlotPath, Record, TimeLimit, console, picked, run
from benchmarks.limits import Rates
from benchmarks.random_pair import QWEN3_4B, QWEN3_8B, SHAPES
from benchmarks.random_pair import SMALL as SMALL_PAIR
from benchmarks.round.measure import Finding, Plan
from benchmarks.round.points import LARGE, SMALL
from benchmarks.round.report import plot, tables

Model = StrEnum("Model", {name: name for name in SHAPES})  # type: ignore[misc]
Models = Annotated[
    list[Model] | None,
    typer.Option("--model", help="Whose sizes; may be repeated; default: qwen3-8b and qwen3-4b, or small on a CPU."),
]
Batches = Annotated[list[int] | None, typer.Option("--batch", help="Of the grid's batches only these.")]
Contexts = Annotated[list[int] | None, typer.Option("--context", min=1, help="Tokens in pages; may be repeated.")]
Repeats = Annotated[int | None, typer.Option(min=1, help="Timed rounds of each kind; default: 20, or 3 on a CPU.")]


def main(
    model: Models = None,
    batch: Batches = None,
    context: Contexts = None,
    repeats: Repeats = None,
    time_limit_s: TimeLimit = None,
    json_path: JsonPath = None,
    plot_path: PlotPath = None,
) -> None:
    """A target's round and a drafter's, against their bytes and operations and against transformers' eager round.

    On a GPU batch 1 with trees of 1, 16, 64 and 256 rows, 8 with 16, 32 with 8, over contexts of 1K, 4K and 32K; where
    there is none, small sizes.
    """
    torch.manual_seed(0)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    dtype = torch.bfloat16 if on_gpu else torch.float32
    torch.set_num_threads(1)
    grid = LARGE if on_gpu else SMALL
    names = tuple(dict.fromkeys(model or ((QWEN3_8B.name, QWEN3_4B.name) if on_gpu else (SMALL_PAIR.name,))))
    batches, contexts = picked(batch, tuple(grid.tree_rows)), picked(context, grid.contexts)
    if unknown := [one for one in batches if one not in grid.tree_rows]:
        raise typer.BadParameter(f"batch {unknown[0]} is none of {', '.join(map(str, grid.tree_rows))}")
    repeats = repeats or grid.repeats
    filled = {"target": "prefill rounds", "drafter": "random features", "Hugging Face": "random keys and values"}
    settings = {"models": names, "dtype": str(dtype), "repeats": repeats, "context_filled_by": filled}
    record = Record(json_path, plot_path, settings)
    deadline = Deadline(time_limit_s)
    rates = Rates.measure(device, dtype)
    settings["rates"] = asdict(rates)
    settings["shapes"] = [asdict(SHAPES[name]) for name in names]
    findings: list[Finding] = []
    cells = grid.cells(batches, contexts)
    total = len(names) * sum(len(cell.rounds) + 1 for cell in cells)
    with Progress() as progress:
        task = progress.add_task("rounds", total=total)
        for name in names:
            for found in Plan(SHAPES[name], dtype, device, repeats, rates, deadline).findings(cells):
                findings.append(found)
                record.add(found.as_dict())
                progress.advance(task)
    for table in tables(findings):
        console().print(table)
    print(rates)
    if plot_path is not None:
        plot(findings, plot_path)


if __name__ == "__main__":
    run(main)
