"""The picture: tokens per round and how far they were foreseen, by the size of the trees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """A column per temperature."""
    temperatures = sorted({result["temperature"] for result in results})
    figure = Figure(figsize=(5 * len(temperatures), 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(temperatures), squeeze=False)
    for column, temperature in enumerate(temperatures):
        upper, lower = axes[0][column], axes[1][column]
        of_temperature = [result for result in results if result["temperature"] == temperature]
        for name in dict.fromkeys(result["scores"] for result in of_temperature):
            chosen = [result for result in of_temperature if result["scores"] == name]
            sizes = [result["num_nodes"] for result in chosen]
            upper.plot(sizes, [result["acceptance_length"] for result in chosen], marker="o", label=name)
            lower.plot(sizes, [result["predicted_per_actual"] for result in chosen], marker="o", label=name)
        upper.set_title(f"temperature {temperature:g}")
        upper.set_ylabel("tokens per round")
        lower.set_ylabel("predicted / actual")
        lower.axhline(1.0, color="grey", linewidth=0.8)
        for axis in (upper, lower):
            axis.set_xscale("log", base=2)
            axis.set_xlabel("nodes per sequence")
        upper.legend()
    figure.savefig(path, dpi=120)
