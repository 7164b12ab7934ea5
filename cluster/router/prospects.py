"""How fast a target would write with so many drafts and nodes: the choices that are open before any draft is there."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Longs = npt.NDArray[np.int64]

# Tokens that a draft brings with so many nodes, over those with 32: half way between temperatures 0 and 1 as recorded
# of the embedded pair (benchmarks/results/scores-cpu.json). Each sequence has its own level; the shape is taken as one.
NODES = np.array([0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0])
_SHAPE = np.array([0.07, 0.14, 0.28, 0.45, 0.67, 0.81, 0.91, 1.0, 1.07, 1.12, 1.16])
_LOG_NODES = np.log2(NODES)


def shape_at(nodes_per_draft: Doubles) -> Doubles:
    """Of the gain at 32 nodes, the part that so many bring. Below a quarter of a node and above 256 as there."""
    shape: Doubles = np.interp(np.log2(np.maximum(nodes_per_draft, NODES[0])), _LOG_NODES, _SHAPE)
    return shape


class Prospects(NamedTuple):
    """One entry per number of drafts, rising from 0, each with as many nodes per draft as suit it best."""

    num_drafts: Longs
    tokens: Doubles  # of a round, weighted
    seconds: Doubles  # of the target's time that a round takes up
    between_s: Doubles  # from a result to the next request

    @property
    def rates(self) -> Doubles:
        return self.tokens / self.seconds


def num_drafts_to_try(most: int) -> Longs:
    """0, the powers of two, and all."""
    powers = [1 << i for i in range(most.bit_length())]
    return np.array(sorted({0, most, *powers}), np.int64)


def cycle_s(verify_s: Doubles, between_s: Doubles, num_micro_batches: int) -> Doubles:
    """The target's time that a round takes up: with two in flight, what lies between rounds hides behind the other one,
    as far as that is long enough."""
    if num_micro_batches == 1:
        return verify_s + between_s
    hidden: Doubles = np.maximum(verify_s, 0.5 * (verify_s + between_s))
    return hidden


def prospects(
    num_drafts: Longs,  # `num_drafts_to_try(len(levels))`
    levels: Doubles,  # [sequences that could be drafted], gains at 32 nodes, weighted, falling
    sure_tokens: float,  # of a round without drafts, weighted
    num_roots: int,
    verify_s: Doubles,  # [most rows + 1] by rows, roots included
    between_s: Doubles,  # [len(num_drafts)], from a result to the next request
    num_micro_batches: int,
    nodes_per_draft: Doubles,  # to try, rising
) -> Prospects:
    """Each number of drafts goes to those sequences that gain most."""
    gains = np.concatenate([np.zeros(1), np.cumsum(levels)])[num_drafts]
    rows = num_roots + np.rint(num_drafts[:, None] * nodes_per_draft[None]).astype(np.int64)
    tokens = sure_tokens + gains[:, None] * shape_at(nodes_per_draft)[None]
    fits = rows < len(verify_s)
    fits[:, 0] = True  # as many nodes as fit, however few
    seconds = cycle_s(verify_s[np.minimum(rows, len(verify_s) - 1)], between_s[:, None], num_micro_batches)
    rates = np.where(fits, tokens / seconds, -np.inf)
    best = rates.argmax(axis=1)
    each = np.arange(len(num_drafts))
    return Prospects(num_drafts, tokens[each, best], seconds[each, best], between_s)
