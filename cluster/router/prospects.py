"""How fast a target would write with so many drafts and nodes: the choices that are open before any draft is there."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dflash_core.jit import jit

Doubles = npt.NDArray[np.float64]
Longs = npt.NDArray[np.int64]

# Tokens that a draft brings with so many nodes, over those with 32: half way between temperatures 0 and 1 as recorded
# of the embedded pair (benchmarks/results/scores-cpu.json). Each sequence has its own level; the shape is taken as one.
_LEAST_LOG = -2.0
NODES = 2.0 ** np.arange(_LEAST_LOG, 9.0)  # 1/4 … 256
_SHAPE = np.array([0.07, 0.14, 0.28, 0.45, 0.67, 0.81, 0.91, 1.0, 1.07, 1.12, 1.16])


@jit
def shape_at(nodes_per_draft: float) -> float:
    """Of the gain at 32 nodes, the part that so many bring. Below a quarter of a node and above 256 as there."""
    place = math.log2(max(nodes_per_draft, 0.25)) - _LEAST_LOG
    left = min(int(place), len(_SHAPE) - 2)
    low, high = _SHAPE[left], _SHAPE[left + 1]
    return float(low + min(place - left, 1.0) * (high - low))


@dataclass(frozen=True, slots=True)
class Prospects:
    """One entry per number of drafts, rising from 0, each with as many nodes per draft as suit it best."""

    num_drafts: Longs
    tokens: Doubles  # of a round, weighted
    seconds: Doubles  # of the target's time that a round takes up
    between_s: Doubles  # from a result to the next request
    rates: Doubles = field(init=False)  # tokens per second
    best: int = field(init=False)  # the place of the best of them

    def __post_init__(self) -> None:
        rates = self.tokens / self.seconds
        object.__setattr__(self, "rates", rates)
        object.__setattr__(self, "best", int(rates.argmax()))


@functools.cache
def num_drafts_to_try(most: int) -> Longs:
    """0, the powers of two, and all. Read only."""
    powers = [1 << i for i in range(most.bit_length())]
    return np.array(sorted({0, most, *powers}), np.int64)


@jit
def cycle_s(verify_s: float, between_s: float, num_micro_batches: int) -> float:
    """The target's time that a round takes up: with two in flight, what lies between rounds hides behind the other one,
    as far as that is long enough."""
    if num_micro_batches == 1:
        return verify_s + between_s
    return max(verify_s, 0.5 * (verify_s + between_s))


@jit
def cycles_s(verify_s: Doubles, between_s: float, num_micro_batches: int) -> Doubles:
    """`cycle_s` of each."""
    found = np.empty(len(verify_s))
    for i in range(len(verify_s)):
        found[i] = cycle_s(verify_s[i], between_s, num_micro_batches)
    return found


def prospects(
    num_drafts: Longs,  # `num_drafts_to_try(len(levels))`
    levels: Doubles,  # [sequences that could be drafted], gains at 32 nodes, weighted, falling
    sure_tokens: float,  # of a round without drafts, weighted
    num_roots: int,
    verify_s: Doubles,  # [most rows + 1] by rows, roots included
    between_s: Doubles,  # [len(num_drafts)], from a result to the next request
    num_micro_batches: int,
    nodes_per_draft: Doubles,  # to try, rising
    overruns: tuple[float, float] = (1.0, 1.0),  # so many times as long do rounds take, without drafts and with
) -> Prospects:
    """Each number of drafts goes to those sequences that gain most."""
    tokens, seconds = np.empty(len(num_drafts)), np.empty(len(num_drafts))
    _choose_sizes(
        num_drafts,
        np.ascontiguousarray(levels),
        sure_tokens,
        num_roots,
        verify_s,
        between_s,
        num_micro_batches,
        nodes_per_draft,
        *overruns,
        tokens,
        seconds,
    )
    return Prospects(num_drafts, tokens, seconds, between_s)


@jit
def _choose_sizes(
    num_drafts: Longs,
    levels: Doubles,
    sure_tokens: float,
    num_roots: int,
    verify_s: Doubles,
    between_s: Doubles,
    num_micro_batches: int,
    nodes_per_draft: Doubles,
    plain_overrun: float,
    drafted_overrun: float,
    tokens: Doubles,  # [len(num_drafts)], written
    seconds: Doubles,  # the same
) -> None:
    gain, num_summed, most_rows = 0.0, 0, len(verify_s) - 1
    for place in range(len(num_drafts)):
        while num_summed < num_drafts[place]:
            gain += levels[num_summed]
            num_summed += 1
        best_rate = -1.0
        for size in range(len(nodes_per_draft)):
            rows = num_roots + int(np.rint(num_drafts[place] * nodes_per_draft[size]))
            if rows > most_rows and size > 0:  # the first: as many nodes as fit, however few
                break
            written = sure_tokens + gain * shape_at(nodes_per_draft[size])
            taken_up_s = cycle_s(verify_s[min(rows, most_rows)], between_s[place], num_micro_batches)
            taken_up_s *= plain_overrun if num_drafts[place] == 0 else drafted_overrun
            if written / taken_up_s > best_rate:
                best_rate = written / taken_up_s
                tokens[place], seconds[place] = written, taken_up_s


def warm_up() -> None:
    """Compiles (or loads from the cache) the kernels, so that the first round does not wait for them."""
    one, counts = np.ones(1), num_drafts_to_try(1)
    prospects(counts, one, 1.0, 1, np.ones(2), np.ones(2), 1, one)
    cycles_s(one, 1.0, 1)
