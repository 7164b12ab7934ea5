"""The soak's figures over time."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from tests.soak.run import Soak

_PANELS = {
    "uss_mib": "memory of its own, MiB",
    "fds": "file descriptors",
    "free_blocks": "free blocks",
    "num_sequences": "sequences held",
}


def plot(soak: Soak, path: Path) -> None:
    """Thick: processes that live from beginning to end. Thin: those that were killed, and their replacements."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    processes = list(dict.fromkeys(sample.process for sample in soak.samples))
    for panel, (name, title) in zip(figure.subplots(2, 2, sharex=True).flat, _PANELS.items(), strict=True):
        for process in processes:
            times, values = soak.figures_of(process, name)
            if not values:
                continue
            is_long_lived = process in soak.long_lived
            style = {"linewidth": 1.6, "label": process} if is_long_lived else {"linewidth": 0.5, "color": "0.7"}
            panel.plot([time / 60 for time in times], values, **style)
        panel.set_title(title)
        panel.set_ylim(bottom=0)
        panel.set_xlabel("minutes")
        panel.legend(fontsize="small")
    figure.savefig(path, dpi=110)
