"""From samples to one row per arm and cell. Medians over repeats, so that a burst of noise leaves no mark."""

from __future__ import annotations

import operator
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cluster.bench.arms import HUGGING_FACE, PLAIN, Arm, Cell
from cluster.bench.samples import Decoded, Sample


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times faster than another arm: `speed_up`, and the quartiles of the paired ratios of groups."""

    speed_up: float
    lower_quartile: float
    median: float
    upper_quartile: float


@dataclass(frozen=True, slots=True)
class Row:
    """One arm in one cell."""

    cell: Cell
    arm: Arm
    tokens_per_second: float  # of all groups, each by its median over repeats
    acceptance_length: float | None  # tokens per sequence and round after the prefill; None where none are counted
    nodes_per_round: float
    num_tokens: int  # of one repeat
    num_outputs: int  # outputs compared with plain decoding's, and how many were the same
    num_identical: int
    over_plain: Ratio | None
    over_hugging_face: Ratio | None
    stage_ms: dict[str, float]  # mean time of a stage per round of the router

    def cost_per_million(self, price_per_hour: float) -> float:
        """What a million output tokens cost on a machine of this price."""
        return price_per_hour / 3600.0 / self.tokens_per_second * 1e6


def summarise(samples: Iterable[Sample]) -> list[Row]:
    """Rows in the order in which cells and arms first appear in the plan's own order of arms."""
    by_arm = samples_by_arm(samples)
    return [_row(cell, arm, mine, by_arm) for (cell, arm), mine in by_arm.items()]


def samples_by_arm(samples: Iterable[Sample]) -> dict[tuple[Cell, Arm], list[Sample]]:
    found: dict[tuple[Cell, Arm], list[Sample]] = defaultdict(list)
    for sample in samples:
        found[sample.cell, sample.arm].append(sample)
    return found


def _row(cell: Cell, arm: Arm, mine: list[Sample], by_arm: dict[tuple[Cell, Arm], list[Sample]]) -> Row:
    decoded = [sample.decoded for sample in mine]
    plain = by_arm.get((cell, PLAIN), [])
    trees, rounds = sum(d.verified_trees for d in decoded), sum(d.rounds for d in decoded)
    identical, compared = _identical(mine, plain)
    stages: dict[str, int] = defaultdict(int)
    for one in decoded:
        for name, duration_us in one.stage_us.items():
            stages[name] += duration_us
    return Row(
        cell=cell,
        arm=arm,
        tokens_per_second=_rate(mine),
        acceptance_length=1 + sum(d.accepted_tokens for d in decoded) / trees if trees else None,
        nodes_per_round=sum(d.tree_nodes for d in decoded) / trees if trees else 0.0,
        num_tokens=sum(sample.decoded.num_tokens for sample in mine if sample.repeat == 0),
        num_outputs=compared,
        num_identical=identical,
        over_plain=_ratio(mine, plain),
        over_hugging_face=_ratio(mine, by_arm.get((cell, HUGGING_FACE), [])),
        stage_ms={name: total / 1e3 / rounds for name, total in stages.items()} if rounds else {},
    )


def _rate(samples: Sequence[Sample]) -> float:
    """Tokens of all groups over their times, each by its median over repeats."""
    by_group: dict[int, list[Decoded]] = defaultdict(list)
    for sample in samples:
        by_group[sample.group].append(sample.decoded)
    tokens = [statistics.fmean(d.timed_tokens for d in decoded) for decoded in by_group.values()]
    rates = [statistics.median(d.tokens_per_second for d in decoded) for decoded in by_group.values()]
    return sum(tokens) / sum(num / rate for num, rate in zip(tokens, rates, strict=True))


def _ratio(mine: Sequence[Sample], others: Sequence[Sample]) -> Ratio | None:
    """None where the other arm was not run in this cell."""
    if not others:
        return None
    theirs = {(sample.repeat, sample.group): sample.decoded for sample in others}
    pairs = []
    for sample in mine:
        other = theirs.get((sample.repeat, sample.group))
        if other is not None:
            pairs.append(sample.decoded.tokens_per_second / other.tokens_per_second)
    low, middle, high = statistics.quantiles(pairs, n=4, method="inclusive") if len(pairs) > 1 else pairs * 3
    return Ratio(speed_up(mine, others), low, middle, high)


def speed_up(mine: Iterable[Sample], others: Iterable[Sample]) -> float:
    """How many times faster than other samples of the same cell: the median over repeats, each with all of its groups.

    Within a repeat both have met the same machine; between repeats it may have become another one.
    """
    ours, theirs = rates_by_repeat(mine), rates_by_repeat(others)
    return statistics.median(rate / theirs[repeat] for repeat, rate in ours.items() if repeat in theirs)


def rates_by_repeat(samples: Iterable[Sample]) -> dict[int, float]:
    """Tokens per second of all groups of a repeat."""
    totals: dict[int, tuple[int, float]] = {}
    for sample in samples:
        tokens, seconds = totals.get(sample.repeat, (0, 0.0))
        totals[sample.repeat] = tokens + sample.decoded.timed_tokens, seconds + sample.decoded.seconds
    return {repeat: tokens / seconds for repeat, (tokens, seconds) in totals.items()}


def _identical(mine: Sequence[Sample], plain: Sequence[Sample]) -> tuple[int, int]:
    theirs = {(sample.repeat, sample.group): sample.decoded.outputs for sample in plain}
    same = total = 0
    for sample in mine:
        expected = theirs.get((sample.repeat, sample.group))
        if expected is not None:
            same += sum(map(operator.eq, sample.decoded.outputs, expected))
            total += len(expected)
    return same, total
