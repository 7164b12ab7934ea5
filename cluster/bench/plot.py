"""The picture of a benchmark: tokens per second above, acceptance length below, one column per cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cluster.bench.arms import Arm, ArmKind
from cluster.bench.report import cells_of
from cluster.bench.summary import Row

COLOURS = {
    ArmKind.HUGGING_FACE: "#8c8c8c",
    ArmKind.PLAIN: "#4c72b0",
    ArmKind.CHAIN: "#dd8452",
    ArmKind.TREE: "#55a868",
    ArmKind.ADAPTIVE: "#c44e52",
}
REFERENCE = "#c9dfcd"  # a tree without what this project adds


def save_plot(path: Path, rows: Sequence[Row]) -> None:
    cells = cells_of(rows)
    figure = Figure(figsize=(1.0 + 4.2 * len(cells), 7.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(cells), squeeze=False)
    for column, cell in enumerate(cells):
        mine = [row for row in rows if row.cell == cell]
        names = [row.arm.name for row in mine]
        colours = [_colour(row.arm) for row in mine]
        speed, acceptance = axes[0, column], axes[1, column]
        speed.set_title(f"T = {cell.temperature:g}, requests at a time: {cell.concurrency}")
        bars = speed.bar(names, [row.tokens_per_second for row in mine], color=colours)
        speed.bar_label(bars, fmt="%.0f", fontsize=8)
        bars = acceptance.bar(names, [row.acceptance_length or 0.0 for row in mine], color=colours)
        acceptance.bar_label(
            bars, [f"{row.acceptance_length:.2f}" if row.acceptance_length else "" for row in mine], fontsize=8
        )
        for axis in (speed, acceptance):
            axis.tick_params(axis="x", labelrotation=60, labelsize=8)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("tokens per second")
    axes[1, 0].set_ylabel("acceptance length (tokens per round)")
    figure.savefig(path, dpi=150)


def _colour(arm: Arm) -> str:
    return COLOURS[arm.kind] if arm.learns_acceptance else REFERENCE
