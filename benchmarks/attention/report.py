"""What was found, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.attention.inputs import ARMS
from benchmarks.attention.measure import Finding


def table(findings: Sequence[Finding]) -> Table:
    shown = Table(title="Milliseconds of one layer's attention, and of the work list that a round's layers share")
    for name in ("batch", "context", "nodes", *ARMS, "limit", "of limit", "best baseline / ours"):
        shown.add_column(name, justify="right")
    for name in ("list", "its kernel", "error"):
        shown.add_column(name, justify="right")
    for found in findings:
        shown.add_row(
            *map(str, asdict(found.size).values()),
            *(f"{found.ms[arm]:.3f}" if arm in found.ms else found.missing.get(arm, "") for arm in ARMS),
            "" if found.limit is None else f"{found.limit.larger_ms:.3f} {_what_binds(found)}",
            "" if found.of_limit is None else f"{found.of_limit:.0%}",
            "" if found.best_baseline is None else f"{found.best_baseline:.2f}",
            "" if found.prepare_ms is None else f"{found.prepare_ms:.3f}",
            "" if found.listing_ms is None else f"{found.listing_ms:.4f}",
            "" if found.error is None else f"{found.error:.1e}",
        )
    return shown


def plot(findings: Sequence[Finding], path: Path) -> None:
    batches = sorted({found.size.batch for found in findings})
    figure = Figure(figsize=(6 * len(batches), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(batches), squeeze=False)
    for axis, batch in zip(axes[0], batches, strict=True):
        mine = [found for found in findings if found.size.batch == batch]
        labels = [f"{found.size.context}/{found.size.nodes}" for found in mine]
        for arm in ARMS:
            axis.plot(labels, [found.ms.get(arm, float("nan")) for found in mine], marker="o", markersize=3, label=arm)
        limits = [float("nan") if found.limit is None else found.limit.larger_ms for found in mine]
        axis.plot(labels, limits, linestyle="--", color="black", label="limit")
        axis.set(title=f"batch {batch}", yscale="log", xlabel="context / nodes", ylabel="ms")
        axis.tick_params(axis="x", rotation=90)
    axes[0][0].legend()
    figure.savefig(path, dpi=120)


def _what_binds(found: Finding) -> str:
    assert found.limit is not None
    return "bytes" if found.limit.bytes_ms >= found.limit.operations_ms else "ops"
