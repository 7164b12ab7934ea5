"""How many of the likeliest nodes pay, and the trees that they make."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dflash_core.jit import jit, jit_borrowing
from dflash_core.trees.falling import falling
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
    num_rows: Longs  # [sequences], of each tree, its root included
    expected: Doubles  # [sequences], tokens, the bonus token included


def select_nodes(found: Found, costs: Doubles, threshold: float) -> Selection:
    """The number n of nodes that maximises the sum of the n largest keys − costs[n]; the largest of equally good ones.

    Nodes that a sequence gets in any case count first and are taken whatever they cost, as far as `costs` goes.

    Args:
        costs: `[most nodes + 1]`, finite.
        threshold: no node that was not found has a larger key.
    """
    return _select(falling(found.keys), found.is_complete, costs, threshold)


@jit_borrowing
def _select(keys: Doubles, is_complete: bool, costs: Doubles, threshold: float) -> Selection:
    """`keys [nodes]` in falling order."""
    most = len(costs) - 1
    num_found = min(len(keys), most)
    gain, best_value, num_taken = 0.0, -np.inf, 0
    for n in range(num_found + 1):
        if n > 0:
            gain += keys[n - 1] if keys[n - 1] < FLOOR else keys[n - 1] - FLOOR
        if n < num_found and keys[n] >= FLOOR:
            continue  # the next one is taken in any case
        if gain - costs[n] >= best_value:
            best_value, num_taken = gain - costs[n], n
    is_certain = True
    if not is_complete:
        # Were all nodes below the threshold as likely as it, could more of them pay?
        for n in range(num_found + 1, most + 1):
            is_certain &= gain + (n - num_found) * threshold - costs[n] < best_value
    if num_taken == 0:
        return Selection(0, np.inf, 0, is_certain)
    first_equal = num_taken - 1
    while first_equal > 0 and keys[first_equal - 1] == keys[first_equal]:
        first_equal -= 1
    return Selection(num_taken, keys[num_taken - 1], num_taken - first_equal, is_certain)


@jit
def take_nodes(roots: Ints, weights: Doubles, found: Found, cutoff: float, num_equal: int) -> PackedTrees:
    """The nodes that a `Selection` with this cutoff takes, as trees."""
    num_sequences = len(roots)
    tokens = np.empty(num_sequences + len(found.keys), np.int32)
    depths = np.empty(num_sequences + len(found.keys), np.int32)
    num_rows, expected = np.empty(num_sequences, np.int64), np.ones(num_sequences, np.float64)
    row, node = 0, 0
    for sequence in range(num_sequences):
        tokens[row], depths[row] = roots[sequence], 0
        first_row = row
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
        num_rows[sequence] = row - first_row
    return PackedTrees(tokens[:row], depths[:row], num_rows, expected)
