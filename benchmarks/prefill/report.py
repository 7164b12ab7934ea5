"""What was found, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.prefill.arrivals import Gaps
from benchmarks.prefill.measure import Finding


def table(findings: Sequence[Finding], prompt_tokens: int) -> Table:
    shown = Table(title=f"A prompt of {prompt_tokens} tokens beside decoding streams; milliseconds")
    for name in ("chunk tokens", "first token", "gaps before: p50", "p99", "max", "during: p50", "p99", "max", "gaps"):
        shown.add_column(name, justify="right")
    for found in findings:
        if found.missing is not None:
            shown.add_row(label(found, prompt_tokens), found.missing)
            continue
        shown.add_row(
            label(found, prompt_tokens),
            f"{found.median_first_token_ms:.0f}",
            *_cells(found.before),
            *_cells(found.during),
            str(found.during.count),
        )
    return shown


def plot(findings: Sequence[Finding], prompt_tokens: int, path: Path) -> None:
    """Time to the prompt's first token, and the streams' longest waits meanwhile, over chunk sizes."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    findings = [found for found in findings if found.missing is None]
    labels = [label(found, prompt_tokens) for found in findings]
    axis.plot(labels, [found.median_first_token_ms for found in findings], marker="o", color="black", label="TTFT")
    for name, colour in (("p50", "#55a868"), ("p99", "#dd8452"), ("max", "#c44e52")):
        axis.plot(labels, [getattr(f.during, name) for f in findings], marker="o", color=colour, label=f"gap {name}")
    before = [found.before.p50 for found in findings]
    axis.plot(labels, before, linestyle="--", color="#55a868", label="gap p50 before")
    axis.set(yscale="log", xlabel="prefill_chunk_tokens", ylabel="ms", title=f"a prompt of {prompt_tokens} tokens")
    axis.grid(axis="y", alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=150)


def label(found: Finding, prompt_tokens: int) -> str:
    return "whole prompt" if found.chunk_tokens >= prompt_tokens else str(found.chunk_tokens)


def _cells(gaps: Gaps) -> tuple[str, str, str]:
    return f"{gaps.p50:.1f}", f"{gaps.p99:.1f}", f"{gaps.max:.1f}"
