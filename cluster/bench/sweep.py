"""How well the router chooses: the adaptive arm against every fixed setting, in each cell and over all of them."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.bench.arms import ADAPTIVE, PLAIN, Arm, Cell
from cluster.bench.samples import Sample
from cluster.bench.summary import Row, rates_by_repeat, samples_by_arm, speed_up


@dataclass(frozen=True, slots=True)
class CellChoice:
    """One cell: the adaptive arm, and the fastest fixed setting beside it, which may be plain decoding.

    over_best: the median over repeats of how many times faster the adaptive arm was than the setting that was the
        fastest in the other repeats. Of several that are as good the fastest of a run is the luckiest, which nobody
        could have chosen before.
    """

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
        return _closest(mean for mean in self.means if mean.arm.is_fixed)

    @property
    def best_published(self) -> MeanRatio:
        """The same of the settings that there are elsewhere. Plain decoding is one of both."""
        return _closest(mean for mean in self.means if mean.arm.is_published)

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
        return {
            "cells": cells,
            "adaptive_over_fixed": means,
            "best_single_fixed": self.best_single.arm.name,
            "best_single_published": self.best_published.arm.name,
        }


def sweep_of(rows: Sequence[Row], samples: Sequence[Sample]) -> Sweep | None:
    """Of the cells that have the adaptive arm and plain decoding; None where there are none.

    Only what was measured in all of them can be the single fixed setting. `rows` are those of the samples.
    """
    found, by_arm = {(row.cell, row.arm): row for row in rows}, samples_by_arm(samples)
    ratios: dict[Cell, dict[Arm, float]] = defaultdict(dict)  # over each setting
    for cell, arm in found:
        if (arm.is_fixed or arm.is_published) and {(cell, ADAPTIVE), (cell, PLAIN)} <= found.keys():
            ratios[cell][arm] = speed_up(by_arm[cell, ADAPTIVE], by_arm[cell, arm])
    if not ratios:
        return None
    choices = []
    for cell, over in ratios.items():
        fixed = [arm for arm in over if arm.is_fixed]
        best = min(fixed, key=over.__getitem__)
        rates = {arm: rates_by_repeat(by_arm[cell, arm]) for arm in (ADAPTIVE, *fixed)}
        choices.append(CellChoice(cell, found[cell, ADAPTIVE], found[cell, best], _over_best(rates), over[PLAIN]))
    everywhere = [arm for arm in ratios[choices[0].cell] if all(arm in over for over in ratios.values())]
    return Sweep(tuple(choices), tuple(_mean(arm, [over[arm] for over in ratios.values()]) for arm in everywhere))


def _over_best(rates: Mapping[Arm, Mapping[int, float]]) -> float:
    """`CellChoice.over_best`; `rates`: by repeat, of the adaptive arm and of every fixed setting."""

    def over(arm: Arm, repeats: Iterable[int]) -> float:
        return statistics.median(rates[ADAPTIVE][repeat] / rates[arm][repeat] for repeat in repeats)

    fixed, repeats = [arm for arm in rates if arm != ADAPTIVE], rates[ADAPTIVE].keys()
    ratios = []
    for repeat in repeats:
        others = repeats - {repeat} or {repeat}
        ratios.append(over(min(fixed, key=lambda arm: over(arm, others)), {repeat}))
    return statistics.median(ratios)


def _closest(means: Iterable[MeanRatio]) -> MeanRatio:
    return min(means, key=lambda mean: mean.geometric)


def _mean(arm: Arm, ratios: Sequence[float]) -> MeanRatio:
    return MeanRatio(arm, statistics.geometric_mean(ratios), min(ratios), max(ratios))
