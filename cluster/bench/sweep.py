"""How well the router chooses: the adaptive arm against every fixed setting, in each cell and over all of them."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.bench.arms import ADAPTIVE, PLAIN, Arm, Cell
from cluster.bench.samples import Sample
from cluster.bench.summary import Row, samples_by_arm, speed_up


@dataclass(frozen=True, slots=True)
class CellChoice:
    """One cell: the adaptive arm, and the fastest fixed setting beside it, which may be plain decoding."""

    cell: Cell
    adaptive: Row
    best: Row
    over_best: float
    over_plain: float


@dataclass(frozen=True, slots=True)
class MeanRatio:
    """How many times faster the adaptive arm is than one fixed setting, over all cells."""

    arm: Arm
    geometric: float
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Sweep:
    cells: tuple[CellChoice, ...]
    means: tuple[MeanRatio, ...]

    @property
    def best_single(self) -> MeanRatio:
        """The fixed setting to choose if one had to serve all cells: that which comes closest to the adaptive arm."""
        return min(self.means, key=lambda mean: mean.geometric)

    def as_dict(self) -> dict[str, Any]:
        cells = [
            {
                **asdict(entry.cell),
                "best_fixed": entry.best.arm.name,
                "over_best_fixed": entry.over_best,
                "over_plain": entry.over_plain,
            }
            for entry in self.cells
        ]
        means = [{"arm": m.arm.name, "geometric": m.geometric, "least": m.least, "most": m.most} for m in self.means]
        return {"cells": cells, "adaptive_over_fixed": means, "best_single_fixed": self.best_single.arm.name}


def sweep_of(rows: Sequence[Row], samples: Sequence[Sample]) -> Sweep | None:
    """Of the cells that have the adaptive arm and plain decoding; None where there are none.

    Only what was measured in all of them can be the single fixed setting. `rows` are those of the samples.
    """
    found, by_arm = {(row.cell, row.arm): row for row in rows}, samples_by_arm(samples)
    ratios: dict[Cell, dict[Arm, float]] = defaultdict(dict)  # over each fixed setting
    for cell, arm in found:
        if arm.is_fixed and {(cell, ADAPTIVE), (cell, PLAIN)} <= found.keys():
            ratios[cell][arm] = speed_up(by_arm[cell, ADAPTIVE], by_arm[cell, arm])
    if not ratios:
        return None
    choices = []
    for cell, over in ratios.items():
        best = min(over, key=over.__getitem__)
        choices.append(CellChoice(cell, found[cell, ADAPTIVE], found[cell, best], over[best], over[PLAIN]))
    everywhere = [arm for arm in ratios[choices[0].cell] if all(arm in over for over in ratios.values())]
    return Sweep(tuple(choices), tuple(_mean(arm, [over[arm] for over in ratios.values()]) for arm in everywhere))


def _mean(arm: Arm, ratios: Sequence[float]) -> MeanRatio:
    return MeanRatio(arm, statistics.geometric_mean(ratios), min(ratios), max(ratios))
