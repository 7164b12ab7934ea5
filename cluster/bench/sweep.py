"""How well the router chooses: the adaptive arm against every fixed setting, in each cell and over all of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.bench.arms import ADAPTIVE, PLAIN, Arm, Cell
from cluster.bench.summary import Row


@dataclass(frozen=True, slots=True)
class CellChoice:
    """One cell: the adaptive arm, plain decoding, and the fastest fixed setting, which may be plain decoding too."""

    cell: Cell
    adaptive: Row
    plain: Row
    best: Row

    @property
    def over_best(self) -> float:
        return self.adaptive.tokens_per_second / self.best.tokens_per_second

    @property
    def over_plain(self) -> float:
        return self.adaptive.tokens_per_second / self.plain.tokens_per_second


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


def sweep_of(rows: Sequence[Row]) -> Sweep | None:
    """Of the cells that have the adaptive arm and plain decoding; None where there are none.

    Only what was measured in all of them can be the single fixed setting.
    """
    by_cell: dict[Cell, dict[Arm, Row]] = {}
    for row in rows:
        by_cell.setdefault(row.cell, {})[row.arm] = row
    complete = {cell: arms for cell, arms in by_cell.items() if ADAPTIVE in arms and PLAIN in arms}
    if not complete:
        return None
    choices = tuple(
        CellChoice(cell, arms[ADAPTIVE], arms[PLAIN], max(_fixed(arms), key=lambda row: row.tokens_per_second))
        for cell, arms in complete.items()
    )
    everywhere = [row.arm for row in _fixed(complete[choices[0].cell]) if all(row.arm in a for a in complete.values())]
    return Sweep(choices, tuple(_mean(arm, list(complete.values())) for arm in everywhere))


def _fixed(arms: dict[Arm, Row]) -> list[Row]:
    return [row for arm, row in arms.items() if arm.is_fixed]


def _mean(arm: Arm, cells: Sequence[dict[Arm, Row]]) -> MeanRatio:
    ratios = [arms[ADAPTIVE].tokens_per_second / arms[arm].tokens_per_second for arms in cells]
    return MeanRatio(arm, statistics.geometric_mean(ratios), min(ratios), max(ratios))
