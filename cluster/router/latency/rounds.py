"""`RoundTimeModel`: what a round of a target takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.router.latency.estimator import SEEDED, UNSEEDED, Cost, LatencyEstimator
from cluster.router.latency.ladder import Ladder
from cluster.router.latency.load import RoundLoad
from dflash_core.jit import jit

Floats = npt.NDArray[np.float64]

_WITHOUT_SEED = (10e-3, 0.1e-3)  # seconds of any round, and of each row on top


class RoundTimeModel:
    """Time of a target's rounds by `RoundLoad`: a curve over rows, steps where the target pads them, and costs of each
    sequence, each token of context that is read, each row's attention to one, and of there being nodes at all. See
    `LatencyEstimator`.

    Context is two costs, since it is two kinds of work: a sequence's keys are read once however many rows it has, and
    every row is multiplied with them. With one cost for both, rows would seem dear that are not: a tree's further nodes
    read nothing.

    A round with nodes takes longer than one of as many prefill rows: drafters have just used the same caches, paths are
    walked and their keys moved. Where every round has nodes, this is told from what a row costs by the seed alone, and
    what a round without them would take hangs on it.
    """

    def __init__(self, row_sizes: tuple[int, ...], seed: tuple[tuple[int, int], ...]) -> None:
        """Of `TargetInfo.row_sizes` and `TargetInfo.round_times_us`. Either may be empty."""
        self._row_sizes = row_sizes
        self._seed = seed
        ladder = Ladder(row_sizes, [(rows, time_us * 1e-6) for rows, time_us in seed], _WITHOUT_SEED)
        a_row = ladder.slope
        costs = (
            Cost(a_row, 0.5, 1.5),  # a sequence
            Cost(a_row / 50, 0.1, 0.6),  # a token of context
            Cost(a_row / 300, 0.1, 0.5),  # a row's attention to one
            Cost(float(ladder.seed_times[0]) / 10, 0.5, 1.0),  # nodes
        )
        self._ladder = ladder
        self._estimator = LatencyEstimator(ladder, costs, SEEDED if seed else UNSEEDED)

    def observe(self, load: RoundLoad, seconds: float) -> None:
        """A round took `seconds`, from the request sent to the result received. One without rows tells nothing."""
        if load.num_rows:
            self._estimator.observe(load.num_rows, _quantities(load), seconds)

    @property
    def noise(self) -> float:
        """Standard deviation of the logarithm of a round's time."""
        return self._estimator.noise

    def seconds(self, load: RoundLoad) -> float:
        return self._estimator.seconds(load.num_rows) + float(self._estimator.costs() @ _quantities(load))

    def table(self, max_rows: int, fixed: RoundLoad, context_per_row: float) -> Floats:
        """`[max_rows + 1]` seconds of a round with 0, 1, … `max_rows` rows in all; never falling.

        `fixed` is what the round holds whatever is added: chunks, and a root of every tree. Each row beyond its
        `num_rows` is a node of one of these sequences and has `context_per_row` tokens of context; the first one also
        costs that there are nodes, unless `fixed` says so of itself. A round of fewer rows than `fixed` has is one of
        fewer rows with the same context.
        """
        curve = self._estimator.curve(max_rows)
        costs = self._estimator.costs()
        fixed_s, of_nodes_s = float(costs @ _quantities(fixed)), 0.0 if fixed.has_nodes else float(costs[3])
        return _table(curve, max_rows + 1, fixed_s, fixed.num_rows, costs[2] * context_per_row, of_nodes_s)

    def as_dict(self) -> dict[str, Any]:
        """What was learned, for export: `seconds` is the curve at `rows`, without sequences and context."""
        per_sequence, per_context_token, per_context_row, of_nodes = self._estimator.costs().tolist()
        return {
            "row_sizes": list(self._row_sizes),
            "seed_us": [list(point) for point in self._seed],
            "rows": [int(rows) for rows in self._ladder.knots],
            "seconds": self._estimator.knot_times().tolist(),
            "seconds_per_sequence": per_sequence,
            "seconds_per_context_token": per_context_token,
            "seconds_per_context_row": per_context_row,
            "seconds_of_nodes": of_nodes,
            "noise": self.noise,
            "num_observed": self._estimator.num_observed,
            "num_ignored": self._estimator.num_ignored,
        }


@jit
def _table(curve: Floats, num_sizes: int, fixed_s: float, first: int, per_row_s: float, of_nodes_s: float) -> Floats:
    """In one pass: a target's thousands of sizes are looked up several times a round."""
    times = curve[:num_sizes] + fixed_s
    for size in range(first + 1, num_sizes):
        times[size] += (size - first) * per_row_s + of_nodes_s
    return times


def _quantities(load: RoundLoad) -> Floats:
    """In the order of the costs."""
    return np.array((load.num_sequences, load.context_tokens, load.context_rows, load.has_nodes), np.float64)
