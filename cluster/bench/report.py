"""What a benchmark found: JSON for machines, tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cluster.bench.arms import ArmKind, Cell
from cluster.bench.samples import Sample
from cluster.bench.summary import Ratio, Row
from cluster.bench.sweep import Sweep, sweep_of


def cells_of(rows: Sequence[Row]) -> list[Cell]:
    return list(dict.fromkeys(row.cell for row in rows))


def result_table(cell: Cell, rows: Sequence[Row], price_per_hour: float | None) -> Table:
    """One table per cell: speed, speed-ups with the quartiles of the paired groups, acceptance, cost."""
    table = _table(f"Temperature {cell.temperature:g}, {_requests(cell.concurrency)}", "arm")
    for name in ("tokens/s", "× plain", "quartiles", "× HF", "acceptance", "same output"):
        table.add_column(name, justify="right", no_wrap=True)
    if price_per_hour is not None:
        table.add_column("cost of 1M", justify="right", no_wrap=True)
    mine = [row for row in rows if row.cell == cell]
    fastest = max(mine, key=lambda row: row.tokens_per_second)
    for row in mine:
        cost = () if price_per_hour is None else (f"{row.cost_per_million(price_per_hour):.2f}",)
        table.add_row(
            row.arm.name,
            f"{row.tokens_per_second:.1f}",
            "" if row.over_plain is None else f"{row.over_plain.speed_up:.2f}",
            "" if row.over_plain is None else _quartiles(row.over_plain),
            "" if row.over_hugging_face is None else f"{row.over_hugging_face.speed_up:.2f}",
            "" if row.acceptance_length is None else f"{row.acceptance_length:.2f}",
            f"{row.num_identical}/{row.num_outputs}",
            *cost,
            style="bold green" if row is fastest else None,
        )
    return table


def stage_table(cell: Cell, rows: Sequence[Row]) -> Table:
    """Where the time of a round goes. Stages of target and drafter lie within those of the round."""
    ours = [row for row in rows if row.cell == cell and row.stage_ms]
    table = _table(f"Milliseconds per round, temperature {cell.temperature:g}, {_requests(cell.concurrency)}", "stage")
    for row in ours:
        table.add_column(row.arm.name, justify="right", min_width=7)
    for name in sorted({name for row in ours for name in row.stage_ms}):
        table.add_row(name, *(f"{row.stage_ms[name]:.2f}" if name in row.stage_ms else "" for row in ours))
    return table


def sweep_table(sweep: Sweep) -> Table:
    """The adaptive arm in every cell against the best that a user could have set for just that cell."""
    table = _table("Adaptive against the best fixed setting of each cell", "temperature")
    for name in ("requests", "best fixed", "tokens/s", "adaptive", "ratio", "× plain", "acceptance", "nodes"):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in sweep.cells:
        acceptance = entry.adaptive.acceptance_length
        table.add_row(
            f"{entry.cell.temperature:g}",
            str(entry.cell.concurrency),
            entry.best.arm.name,
            f"{entry.best.tokens_per_second:.1f}",
            f"{entry.adaptive.tokens_per_second:.1f}",
            f"{entry.over_best:.3f}",
            f"{entry.over_plain:.2f}",
            "" if acceptance is None else f"{acceptance:.2f}",
            f"{entry.adaptive.nodes_per_round:.1f}",
        )
    return table


def means_table(sweep: Sweep) -> Table:
    """The adaptive arm against each single setting, kept in all cells; bold, the best of ours and of the published."""
    table = _table("Adaptive against one fixed setting for all cells, geometric means", "setting")
    for name in ("adaptive is faster by", "least", "most"):
        table.add_column(name, justify="right", no_wrap=True)
    for mean in sweep.means:
        style = "bold" if mean in (sweep.best_single, sweep.best_published) else None
        table.add_row(mean.arm.name, *(f"{v:.3f}" for v in (mean.geometric, mean.least, mean.most)), style=style)
    return table


def _table(title: str, first_column: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(first_column, no_wrap=True)
    return table


def savings_line(cell: Cell, rows: Sequence[Row], price_per_hour: float) -> str | None:
    """What a million tokens cost with and without speculation; None where one of the two was not measured."""
    mine = [row for row in rows if row.cell == cell]
    plain = next((row for row in mine if row.arm.kind is ArmKind.PLAIN), None)
    drafted = [row for row in mine if row.arm.kind in (ArmKind.CHAIN, ArmKind.TREE, ArmKind.ADAPTIVE)]
    if plain is None or not drafted:
        return None
    best = max(drafted, key=lambda row: row.tokens_per_second)
    return (
        f"temperature {cell.temperature:g}, {_requests(cell.concurrency)}: a million tokens cost "
        f"{plain.cost_per_million(price_per_hour):.2f} without speculation, "
        f"{best.cost_per_million(price_per_hour):.2f} with {best.arm.name}"
    )


def as_json(
    machine: dict[str, str | int | float | None],
    settings: dict[str, Any],
    rows: Sequence[Row],
    samples: Sequence[Sample],
    price_per_hour: float | None,
) -> dict[str, Any]:
    """Everything the tables show, and each sample's time, so that other statistics can be made of a run."""
    results = []
    for row in rows:
        entry = _plain(row) | {"samples": [_sample(s) for s in samples if (s.cell, s.arm) == (row.cell, row.arm)]}
        if price_per_hour is not None:
            entry["cost_per_million_tokens"] = row.cost_per_million(price_per_hour)
        results.append(entry)
    sweep = sweep_of(rows, samples)
    return {
        "machine": machine,
        "settings": settings,
        "results": results,
        "sweep": None if sweep is None else sweep.as_dict(),
    }


def _plain(row: Row) -> dict[str, Any]:
    entry = asdict(row)
    del entry["cell"], entry["arm"]
    return {"arm": row.arm.name, **asdict(row.cell), **entry}


def _sample(sample: Sample) -> dict[str, Any]:
    decoded = sample.decoded
    return {
        "repeat": sample.repeat,
        "group": sample.group,
        "seconds": decoded.seconds,
        "timed_tokens": decoded.timed_tokens,
        "num_tokens": decoded.num_tokens,
        "accepted_tokens": decoded.accepted_tokens,
        "verified_trees": decoded.verified_trees,
        "rounds": decoded.rounds,
    }


def _requests(concurrency: int) -> str:
    return "1 request" if concurrency == 1 else f"{concurrency} requests at a time"


def _quartiles(ratio: Ratio) -> str:
    return f"{ratio.lower_quartile:.2f}–{ratio.upper_quartile:.2f}"
