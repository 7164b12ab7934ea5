"""`python -m benchmarks.scores --trace TRACE.npz --json found.json`: judges tree scores on a recorded trace."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from benchmarks.command import JsonPath, PlotPath, Record, console, picked, run
from benchmarks.scores.replay import Replayed, Scores, replay
from benchmarks.scores.report import plot
from benchmarks.scores.times import build_times
from benchmarks.simulate.playback import EMBEDDED_TRACES
from benchmarks.traces.trace import Trace
from dflash_core.errors import InvalidRequest
from dflash_core.trees.acceptance import AcceptanceModel

_TIMED_DEPTHS, _TIMED_RANKS = (7, 15), 24  # as many ranks as routers ask for with so many nodes
_TIMED_SEQUENCES, _TIMED_NODES = 64, 64


def main(
    trace_path: Annotated[
        Path, typer.Option("--trace", help="By `python -m benchmarks.traces`; default: a small one.")
    ] = EMBEDDED_TRACES,
    num_nodes: Annotated[
        list[int] | None, typer.Option(min=1, help="Nodes per sequence; may be repeated; default: 4, 8, 16, 32, 64.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Sequences that share a budget.")] = 8,
    num_calls: Annotated[int, typer.Option(min=1, help="Calls that are timed.")] = 200,
    json_path: JsonPath = None,
    plot_path: PlotPath = None,
) -> None:
    """Tokens per round with the drafter's scores, with calibrated ones, and with the sequences' own histories.

    Calibration starts from nothing for each figure; `warm` has learned from the same trace once before.
    """
    if not trace_path.is_file():
        raise InvalidRequest(f"there is no trace {trace_path}")
    trace = Trace.load(trace_path)
    sizes = picked(num_nodes, (4, 8, 16, 32, 64))
    record = Record(
        json_path,
        plot_path,
        {
            "target": trace.target,
            "drafter": trace.drafter,
            "num_traces": len(trace.sequences),
            "num_nodes": sizes,
            "concurrency": concurrency,
            "num_calls": num_calls,
        },
    )
    table = Table("temperature", "nodes", "scores", "tokens per round", "against raw", "predicted / actual")
    for temperature in sorted({sequence.sampling.temperature for sequence in trace.sequences}):
        for size in sizes:
            traces, model = trace.at(temperature), AcceptanceModel()
            found = {
                "raw": replay(traces, size, Scores.RAW, concurrency, AcceptanceModel()),
                "calibrated": replay(traces, size, Scores.CALIBRATED, concurrency, AcceptanceModel()),
                "matched": replay(traces, size, Scores.MATCHED, concurrency, model),
                "matched, warm": replay(traces, size, Scores.MATCHED, concurrency, model),
            }
            for name, replayed in found.items():
                result = _result(replayed, found["raw"])
                record.add({"temperature": temperature, "num_nodes": size, "scores": name} | result)
                table.add_row(f"{temperature:g}", str(size), name, *(f"{value:.3f}" for value in result.values()))
    console().print(table)
    if plot_path is not None:
        plot(record.results, plot_path)
    for depth in _TIMED_DEPTHS:
        times = build_times(_TIMED_SEQUENCES, _TIMED_NODES, depth, _TIMED_RANKS, num_calls)
        shape = {
            "num_sequences": _TIMED_SEQUENCES,
            "nodes_per_sequence": _TIMED_NODES,
            "depth": depth,
            "num_ranks": _TIMED_RANKS,
        }
        record.add(shape | asdict(times))
        console().print(
            f"{_TIMED_SEQUENCES} trees of {_TIMED_NODES} nodes, depth {depth}: built in {times.build_least_ms:.2f} ms"
            f" (median {times.build_median_ms:.2f}), learned from in {times.learn_least_ms:.2f} ms"
            f" (median {times.learn_median_ms:.2f})"
        )


def _result(replayed: Replayed, raw: Replayed) -> dict[str, float]:
    return {
        "acceptance_length": replayed.acceptance_length,
        "against_raw": replayed.acceptance_length / raw.acceptance_length,
        "predicted_per_actual": replayed.predicted_per_actual,
    }


if __name__ == "__main__":
    run(main)
