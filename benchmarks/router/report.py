"""What was found, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.router.measure import Cost
from benchmarks.router.messages import MessageCosts

IN_PROCESS, OVER_GRPC = "in process", "gRPC"
_COLOURS = {IN_PROCESS: "#55a868", OVER_GRPC: "#4c72b0"}


@dataclass(frozen=True, slots=True)
class Finding:
    """`messages` is what making and reading the round's messages alone costs; None where there are none."""

    num_sequences: int
    transport: str
    cost: Cost
    messages: MessageCosts | None

    @property
    def messages_ms(self) -> float:
        return 0.0 if self.messages is None else self.messages.total_ms

    @property
    def rest_ms(self) -> float:
        """Draft requests and answers, the event loop, and gRPC's own part: what is no stage of its own."""
        cost = self.cost
        return cost.loop_ms - cost.plan_ms - cost.commit_ms - cost.learn_ms - self.messages_ms

    @property
    def loop_us_per_sequence(self) -> float:
        return self.cost.loop_ms * 1e3 / self.num_sequences

    def as_dict(self) -> dict[str, Any]:
        return {
            "num_sequences": self.num_sequences,
            "transport": self.transport,
            **self.cost.as_dict(),
            "messages": None if self.messages is None else self.messages.as_dict(),
            "rest_ms": self.rest_ms,
            "loop_us_per_sequence": self.loop_us_per_sequence,
        }


def table(findings: Sequence[Finding], tree_budget: int) -> Table:
    shown = Table(title=f"The router alone, trees of {tree_budget} nodes; milliseconds a round")
    shown.add_column("transport", no_wrap=True)
    columns = (
        "sequences",
        "loop CPU",
        "all CPU",
        "wall",
        "plan",
        "commit",
        "learn",
        "messages",
        "rest",
        "µs per sequence",
    )
    for name in columns:
        shown.add_column(name, justify="right", no_wrap=True)
    for found in findings:
        cost = found.cost
        parts = (cost.plan_ms, cost.commit_ms, cost.learn_ms, found.messages_ms, found.rest_ms)
        shown.add_row(
            found.transport,
            str(found.num_sequences),
            *(f"{value:.2f}" for value in (cost.loop_ms, cost.process_ms, cost.wall_ms, *parts)),
            f"{found.loop_us_per_sequence:.1f}",
        )
    return shown


def plot(findings: Sequence[Finding], tree_budget: int, path: Path) -> None:
    """The router's CPU time per round, and the same per sequence, over the number of sequences."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    rounds, sequences = figure.subplots(1, 2)
    for transport in dict.fromkeys(found.transport for found in findings):
        mine = [found for found in findings if found.transport == transport]
        sizes = [found.num_sequences for found in mine]
        colour = _COLOURS[transport]
        rounds.plot(sizes, [found.cost.loop_ms for found in mine], marker="o", color=colour, label=transport)
        sequences.plot(sizes, [found.loop_us_per_sequence for found in mine], marker="o", color=colour, label=transport)
    rounds.set(ylabel="ms of CPU per round", yscale="log", title=f"trees of {tree_budget} nodes")
    sequences.set(ylabel="µs of CPU per round and sequence")
    sequences.set_ylim(bottom=0.0)
    for axis in (rounds, sequences):
        axis.set_xscale("log", base=2)
        axis.set_xlabel("sequences")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=150)
