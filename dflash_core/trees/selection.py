"""How many of the likeliest nodes pay, and the trees that they make."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dflash_core.jit import jit
from dflash_core.trees.packed import FLOOR, Found
from dflash_core.trees.scoring import Doubles, Ints, Longs


class Selection(NamedTuple):
    """Which of the nodes found are taken: those above the cutoff, and the first `num_equal` of those at it."""

    num_taken: int
    cutoff: float
    num_equal: int
    is_certain: bool  # no node that was not found could change it


class PackedTrees(NamedTuple):
    """The trees of a batch one after the other, each with its root."""

    token_ids: Ints  # [rows]
    depths: Ints  # [rows]
    ends: Longs  # [sequences], the row where each tree ends
    expected: Doubles  # [sequences], tokens, the bonus token included


def select_nodes(found: Found, costs: Doubles, threshold: float) -> Selection:
    """The number n of nodes that maximises the sum of the n largest keys − costs[n]; the largest of equally good ones.

    Nodes that a sequence gets in any case count first and are taken whatever they cost, as far as `costs` goes.

    Args:
        costs: `[most nodes + 1]`, finite.
        threshold: no node that was not found has a larger key.
    """
    most = len(costs) - 1
    keys = np.sort(found.keys)[::-1]
    is_floor = keys >= FLOOR
    num_floor = min(int(np.count_nonzero(is_floor)), most)
    num_found = min(len(keys), most)
    gains = np.zeros(num_found + 1)
    np.cumsum((keys - FLOOR * is_floor)[:num_found], out=gains[1:])
    values = gains[num_floor:] - costs[num_floor : num_found + 1]
    num_taken = num_found - int(np.argmax(values[::-1]))
    is_certain = found.is_complete
    if not is_certain:
        # Were all nodes below the threshold as likely as it, could more of them pay?
        unseen = gains[num_found] + np.arange(1, most - num_found + 1) * threshold - costs[num_found + 1 :]
        is_certain = bool(unseen.max(initial=-np.inf) < values.max())
    cutoff = float(keys[num_taken - 1]) if num_taken else np.inf
    return Selection(num_taken, cutoff, num_taken - int(np.count_nonzero(keys > cutoff)), is_certain)


@jit
def take_nodes(roots: Ints, weights: Doubles, found: Found, cutoff: float, num_equal: int) -> PackedTrees:
    """The nodes that a `Selection` with this cutoff takes, as trees."""
    num_sequences = len(roots)
    tokens = np.empty(num_sequences + len(found.keys), np.int32)
    depths = np.empty(num_sequences + len(found.keys), np.int32)
    ends, expected = np.empty(num_sequences, np.int64), np.ones(num_sequences, np.float64)
    row, node = 0, 0
    for sequence in range(num_sequences):
        tokens[row], depths[row] = roots[sequence], 0
        row += 1
        total = 0.0
        for i in range(node, found.ends[sequence]):
            key = found.keys[i]
            if key < cutoff:
                continue
            if key == cutoff:
                if num_equal == 0:
                    continue
                num_equal -= 1
            tokens[row], depths[row] = found.tokens[i], found.depths[i]
            total += key if key < FLOOR else key - FLOOR
            row += 1
        expected[sequence] += total / weights[sequence]
        node = found.ends[sequence]
        ends[sequence] = row
    return PackedTrees(tokens[:row], depths[:row], ends, expected)
