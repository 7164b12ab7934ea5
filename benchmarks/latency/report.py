"""What was found, as a table and as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.latency.observed import ObservedDrafter, ObservedTarget, TimedDraft, TimedRound, median_error
from cluster.router.latency import RoundLoad

_COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860")


def table(target: ObservedTarget, drafter: ObservedDrafter) -> Table:
    shown = Table(title="Median error of the time expected of a step before it was run")
    for name in ("", "steps", "all", "the second half"):
        shown.add_column(name, justify="right")
    for concurrency, rounds in by_concurrency(target.rounds).items():
        _add_row(shown, f"rounds at {concurrency} requests", rounds)
    _add_row(shown, "rounds", target.rounds)
    _add_row(shown, "drafts", drafter.drafts)
    return shown


def _add_row(shown: Table, name: str, steps: Sequence[TimedRound | TimedDraft]) -> None:
    if steps:
        errors = (median_error(steps), median_error(steps[len(steps) // 2 :]))
        shown.add_row(name, str(len(steps)), *(f"{100 * error:.1f} %" for error in errors))


def by_concurrency(rounds: Sequence[TimedRound]) -> dict[int, list[TimedRound]]:
    found: dict[int, list[TimedRound]] = {}
    for one in rounds:
        found.setdefault(one.concurrency, []).append(one)
    return found


def plot(target: ObservedTarget, drafter: ObservedDrafter, path: Path) -> None:
    """Steps as dots, over them what the models expect in the end, and what the pair had measured of itself."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _plot_rounds(left, target)
    _plot_drafts(right, drafter)
    for axis in (left, right):
        axis.set(xscale="log", yscale="log", ylabel="ms")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def _plot_rounds(axis: Axes, target: ObservedTarget) -> None:
    for index, (concurrency, rounds) in enumerate(by_concurrency(target.rounds).items()):
        colour = _COLOURS[index % len(_COLOURS)]
        rows = np.array([one.load.num_rows for one in rounds])
        axis.scatter(rows, [one.seconds * 1e3 for one in rounds], s=8, alpha=0.4, color=colour)
        roots = _typical_roots(rounds)
        first, last = roots.num_rows, max(int(rows.max()), roots.num_rows)
        times = target.model.table(last, roots, roots.context_tokens / roots.num_sequences)
        label = f"expected, {concurrency} requests at a time"
        axis.plot(range(first, last + 1), times[first:] * 1e3, color=colour, label=label, marker="." * (first == last))
    _plot_seed(axis, target.info.round_times_us)
    axis.set(xlabel="rows", title="rounds")


def _typical_roots(rounds: Sequence[TimedRound]) -> RoundLoad:
    """A root of every sequence, their number and contexts those of the median round."""
    count = round(statistics.median(one.load.num_sequences for one in rounds))
    context = count * statistics.median(one.load.context_tokens / one.load.num_sequences for one in rounds)
    return RoundLoad(count, count, context, context)


def _plot_drafts(axis: Axes, drafter: ObservedDrafter) -> None:
    if drafter.drafts:
        blocks = [one.num_blocks for one in drafter.drafts]
        axis.scatter(blocks, [one.seconds * 1e3 for one in drafter.drafts], s=8, alpha=0.4, color=_COLOURS[0])
        counts = range(1, max(blocks) + 1)
        model = drafter.model
        axis.plot(counts, [model.seconds(count) * 1e3 for count in counts], color=_COLOURS[0], label="expected")
        slow = [model.quantile(count, 0.95) * 1e3 for count in counts]
        axis.plot(counts, slow, color=_COLOURS[3], label="expected of 95 %")
    _plot_seed(axis, drafter.info.draft_times_us)
    axis.set(xlabel="blocks", title="drafts")


def _plot_seed(axis: Axes, times_us: Sequence[tuple[int, int]]) -> None:
    sizes, times = [size for size, _ in times_us], [time_us / 1e3 for _, time_us in times_us]
    axis.plot(sizes, times, color="black", linestyle="--", marker="o", markersize=3, label="measured at start-up")
