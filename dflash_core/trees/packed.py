"""A batch as arrays: what it brings to the search for its best nodes, and what the search finds."""

from __future__ import annotations

from typing import NamedTuple

from dflash_core.jit import jit_borrowing
from dflash_core.trees.acceptance import NUM_CLASSES
from dflash_core.trees.scoring import Doubles, Floats, Ints, Longs

MAX_WEIGHT = 8.0
FLOOR = 2 * MAX_WEIGHT  # added to the keys of nodes that a sequence gets in any case
NEGLIGIBLE = 1e-9  # a node whose key is less than this is none


class Candidates(NamedTuple):
    """What a batch brings to the search: one entry per sequence, unless said otherwise."""

    roots: Ints  # their tokens
    token_ids: Ints  # all candidates of all sequences, depth by depth
    scores: Floats  # their log-probabilities; −inf or NaN ends a depth's list
    offsets: Longs  # where a sequence's candidates start
    depths: Longs  # that they reach
    num_ranks: Longs  # K
    max_depths: Longs  # of a node; at most `depths`
    min_nodes: Longs
    max_nodes: Longs
    max_widths: Longs  # most children of a node
    weights: Doubles  # of its tokens against those of the others, ≤ MAX_WEIGHT
    classes: Longs  # context class
    slots: Longs  # of its history; −1: none


@jit_borrowing
def check(candidates: Candidates) -> None:
    """Compiled code looks at no bounds: raises `AssertionError` for what would take it beyond them."""
    num_sequences, num_candidates = len(candidates.roots), len(candidates.token_ids)
    assert num_candidates == len(candidates.scores), "candidates and scores differ in number"
    for sequence in range(num_sequences):
        begin, depth = candidates.offsets[sequence], candidates.depths[sequence]
        end = begin + depth * candidates.num_ranks[sequence]
        assert 0 <= begin <= end <= num_candidates, "a draft lies beyond the candidates"
        assert 0 <= candidates.max_depths[sequence] <= depth, "a tree is deeper than its draft, or less than 0"
        assert min(candidates.min_nodes[sequence], candidates.max_nodes[sequence]) >= 0, "fewer than 0 nodes"
        assert candidates.max_widths[sequence] >= 0, "a width less than 0"
        assert 0.0 < candidates.weights[sequence] <= MAX_WEIGHT, "a weight outside (0, MAX_WEIGHT]"
        assert 0 <= candidates.classes[sequence] < NUM_CLASSES, "an unknown context class"


class Found(NamedTuple):
    """Nodes without roots, sequence after sequence, each in preorder with the likeliest child first."""

    tokens: Ints  # [nodes]
    depths: Ints  # [nodes], from 1 on
    keys: Doubles  # [nodes]: weighted probability that the node and all above it are accepted, FLOOR more where due
    ends: Longs  # [sequences], where a sequence's nodes end
    is_complete: bool  # nothing lies below the threshold
