"""What was found, as tables and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.round.measure import ARMS, OURS, Finding

_EMPTY = float("nan")


def tables(findings: Sequence[Finding]) -> Iterator[Table]:
    """Of the targets' rounds, of the drafters', and where the time of ours goes."""
    targets, drafters = [f for f in findings if f.round], [f for f in findings if not f.round]
    yield _times("Milliseconds of a target's round", targets)
    yield _times("Milliseconds of a drafter's round", drafters)
    yield _stages("Milliseconds of the stages of our target's rounds", targets)
    yield _stages("Milliseconds of the stages of our drafter's rounds", drafters)


def plot(findings: Sequence[Finding], path: Path) -> None:
    """A panel per model: what each round takes, and its limit."""
    models = list(dict.fromkeys(found.model for found in findings))
    figure = Figure(figsize=(2 + 8 * len(models), 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(models), squeeze=False)
    for axis, model in zip(axes[0], models, strict=True):
        mine = [found for found in findings if found.model == model]
        labels = [f"{found.batch}×{found.context} {_what(found)}" for found in mine]
        for arm in ARMS:
            axis.plot(labels, [found.ms.get(arm, _EMPTY) for found in mine], marker="o", linestyle="", label=arm)
        axis.plot(
            labels,
            [_EMPTY if found.limit is None else found.limit.larger_ms for found in mine],
            marker="_",
            markersize=12,
            linestyle="",
            color="black",
            label="limit",
        )
        axis.set(title=model, yscale="log", xlabel="sequences × context, round", ylabel="ms")
        axis.tick_params(axis="x", rotation=90)
        axis.grid(axis="y", alpha=0.3)
    axes[0][0].legend()
    figure.savefig(path, dpi=120)


def _times(title: str, findings: Sequence[Finding]) -> Table:
    table = Table(title=title)
    table.add_column("model")
    for name in ("batch", "context", "rows", *ARMS, "limit", "bytes + ops", "× limit", "× Hugging Face", "accepted"):
        table.add_column(name, justify="right")
    for found in findings:
        accepted = found.num_accepted.values()
        table.add_row(
            found.model,
            str(found.batch),
            str(found.context),
            _what(found),
            *(f"{found.ms[arm]:.2f}" if arm in found.ms else found.missing.get(arm, "") for arm in ARMS),
            "" if found.limit is None else f"{found.limit.larger_ms:.2f}",
            "" if found.limit is None else f"{found.limit.bytes_ms:.2f} + {found.limit.operations_ms:.2f}",
            "" if found.over_limit is None else f"{found.over_limit:.2f}",
            "" if found.over_reference is None else f"{found.over_reference:.2f}",
            "/".join(f"{count:g}" for count in dict.fromkeys(accepted)),  # two numbers where the arms disagree
        )
    return table


def _stages(title: str, findings: Sequence[Finding]) -> Table:
    measured = [found for found in findings if OURS in found.ms]
    names = list(dict.fromkeys(name for found in measured for name in found.stage_ms))
    table = Table(title=title)
    table.add_column("model")
    for name in ("batch", "context", "rows", *names, "all"):
        table.add_column(name, justify="right")
    for found in measured:
        stages = (f"{found.stage_ms[name]:.2f}" if name in found.stage_ms else "" for name in names)
        where = (found.model, str(found.batch), str(found.context), _what(found))
        table.add_row(*where, *stages, f"{found.ms[OURS]:.2f}")
    return table


def _what(found: Finding) -> str:
    if found.round is None:
        return "drafter"
    rows = str(found.round.tree_rows)
    if found.round.prefill_rows:
        rows += f" + {found.round.prefill_rows}"
    return f"{rows} accepted" if found.round.is_accepted else rows
