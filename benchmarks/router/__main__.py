"""`python -m benchmarks.router --json found.json --plot found.png`; needs no GPU.

The cluster's router against drafters and targets that answer at once: what is left is the router's own time. In process
the runners have a thread beside the router's; over gRPC they and a gateway have a process.
"""

from __future__ import annotations

import logging
from typing import Annotated

import typer
from rich.progress import Progress

from benchmarks import event_loop
from benchmarks.command import Deadline, JsonPath, PlotPath, Record, TimeLimit, console, picked, run
from benchmarks.router.instant import DEPTH, NUM_CANDIDATES, Load
from benchmarks.router.measure import in_process, over_grpc
from benchmarks.router.messages import message_costs
from benchmarks.router.report import IN_PROCESS, OVER_GRPC, Finding, plot, table


def main(
    sequences: Annotated[
        list[int] | None, typer.Option(min=1, max=256, help="That decode together; default: 8, 16, 32, 64, 128, 256.")
    ] = None,
    tree_budget: Annotated[int, typer.Option(min=1, help="Nodes of each tree.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Measured, after some that are not.")] = 200,
    time_limit_s: TimeLimit = None,
    json_path: JsonPath = None,
    plot_path: PlotPath = None,
) -> None:
    """Milliseconds of the router's CPU per round, by stage, in process and over gRPC."""
    logging.getLogger("cluster").setLevel(logging.ERROR)  # streams end here because they are meant to
    sizes = picked(sequences, (8, 16, 32, 64, 128, 256))
    settings = {
        "tree_budget": tree_budget,
        "rounds": rounds,
        "depth": DEPTH,
        "num_candidates": NUM_CANDIDATES,
        "event_loop": event_loop.name(),
    }
    record = Record(json_path, plot_path, settings)
    deadline = Deadline(time_limit_s)
    findings: list[Finding] = []
    with Progress(transient=True) as progress:
        for size in progress.track(sizes, description="sizes"):
            if deadline.is_over:
                break
            load = Load(size, tree_budget)
            findings += (
                Finding(size, IN_PROCESS, event_loop.run(in_process(load, rounds)), None),
                Finding(size, OVER_GRPC, event_loop.run(over_grpc(load, rounds)), message_costs(load)),
            )
            record.put(found.as_dict() for found in findings)
    console().print(table(findings, tree_budget))
    if plot_path is not None:
        plot(findings, tree_budget, plot_path)


if __name__ == "__main__":
    run(main)
