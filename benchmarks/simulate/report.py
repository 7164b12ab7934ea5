"""What was found, as tables on a terminal and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.simulate.finding import Finding

_EMPTY = float("nan")


def number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


# What is told of a finding, by heading.
COLUMNS: Final[dict[str, Callable[[Finding], str]]] = {
    "tokens/s": lambda f: number(f.tokens_per_s, 0),
    "first token ms p50": lambda f: number(f.first_token.p50),
    "first token ms p99": lambda f: number(f.first_token.p99),
    "ms/token p50": lambda f: number(f.per_token.p50, 2),
    "ms/token p99": lambda f: number(f.per_token.p99, 2),
    "acceptance length": lambda f: number(f.acceptance_length, 2),
    "nodes": lambda f: number(f.nodes_per_sequence),
    "target busy": lambda f: number(f.target_busy, 2),
    "drafter busy": lambda f: number(f.drafter_busy, 2),
    "Jain": lambda f: number(f.fairness.jain, 3),
    "worst/median": lambda f: number(f.fairness.worst_of_median, 2),
    "router µs/round": lambda f: number(f.router.us_per_round, 0),
    "router µs/sequence": lambda f: number(f.router.us_per_sequence_round),
    "router busy": lambda f: number(f.router.busy, 2),
}
_PANELS: Final[dict[str, Callable[[Finding], float | None]]] = {
    "tokens per second": lambda f: f.tokens_per_s,
    "ms per token, p99": lambda f: f.per_token.p99,
    "first token, ms, p99": lambda f: f.first_token.p99,
    "router µs per sequence and round": lambda f: f.router.us_per_sequence_round,
}


def tables(findings: Sequence[Finding], titles: dict[str, str]) -> Iterator[Table]:
    """One per group; `titles` by group."""
    for group, mine in by_group(findings).items():
        table = Table(title=f"{group}: {titles[group]}")
        table.add_column("")
        table.add_column("policy")
        for heading in COLUMNS:
            table.add_column(heading, justify="right")
        for found in mine:
            table.add_row(found.scenario, found.policy, *(tell(found) for tell in COLUMNS.values()))
        yield table


def plot(findings: Sequence[Finding], titles: dict[str, str], path: Path) -> None:
    """A row of panels per group."""
    groups = by_group(findings)
    figure = Figure(figsize=(5.0 * len(_PANELS), 3.6 * len(groups)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(groups), len(_PANELS), squeeze=False)
    for row, (group, mine) in zip(axes, groups.items(), strict=True):
        names = list(dict.fromkeys(found.scenario for found in mine))
        for axis, (label, value_of) in zip(row, _PANELS.items(), strict=True):
            for policy in dict.fromkeys(found.policy for found in mine):
                values = {found.scenario: value_of(found) for found in mine if found.policy == policy}
                heights = [_EMPTY if (value := values.get(name)) is None else value for name in names]
                axis.plot(names, heights, marker="o", markersize=4, label=policy)
            axis.set(ylabel=label, yscale="log")
            axis.grid(axis="y", alpha=0.3)
            axis.tick_params(axis="x", labelsize=8)
        row[0].set_title(f"{group}: {titles[group]}", loc="left", fontsize=10)
        row[0].legend(fontsize=7)
    figure.savefig(path, dpi=90)


def by_group(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    groups: dict[str, list[Finding]] = {}
    for found in findings:
        groups.setdefault(found.group, []).append(found)
    return groups
