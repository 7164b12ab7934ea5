"""`TreeCandidates`: what one sequence brings to a round, and `pack`, which makes a batch of many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dflash_core.contracts import TokenIds
from dflash_core.contracts.packed import joined
from dflash_core.trees.packed import Candidates

UNLIMITED_WIDTH = 1 << 30
NO_HISTORY = -1


class TreeCandidates(NamedTuple):
    """What one sequence brings to a round: its root, and the drafter's candidates per depth, best first.

    Scores are log-probabilities; one of −inf (or NaN) ends its depth's list.
    """

    root_token: int
    token_ids: TokenIds  # [depth, K], distinct within a depth; [0, 0] where there is no draft
    scores: npt.NDArray[np.float32]  # [depth, K]
    max_depth: int  # of a node; the root's is 0
    max_nodes: int  # without the root
    min_nodes: int = 0  # that it gets even where they do not pay, as far as there are candidates
    max_width: int = UNLIMITED_WIDTH  # children of a node; 1 makes the tree a chain
    weight: float = 1.0  # of its tokens against those of the others
    context_class: int = 0  # `acceptance.context_class`
    history: int = NO_HISTORY  # its slot in the histories; the last token there is the root


def pack(candidates: Sequence[TreeCandidates]) -> Candidates:
    if not candidates:
        return _nobody()
    columns = tuple(zip(*candidates, strict=True))
    roots, token_ids, scores, max_depths, max_nodes, min_nodes, max_widths, weights, classes, slots = columns
    shapes = [of_sequence.shape for of_sequence in token_ids]
    assert shapes == [of_sequence.shape for of_sequence in scores], (shapes, [s.shape for s in scores])
    limits = np.array((max_depths, max_nodes, min_nodes, max_widths, classes, slots), np.int64)
    depths, num_ranks = np.array(tuple(zip(*shapes, strict=True)), np.int64)
    sizes = depths * num_ranks
    return Candidates(
        roots=np.array(roots, np.int32),
        token_ids=joined(token_ids, np.int32),
        scores=joined(scores, np.float32),
        offsets=np.cumsum(sizes) - sizes,
        depths=np.where(num_ranks, depths, 0),
        num_ranks=num_ranks,
        max_depths=np.minimum(limits[0], np.where(num_ranks, depths, 0)),
        max_nodes=limits[1],
        min_nodes=limits[2],
        max_widths=limits[3],
        weights=np.array(weights, np.float64),
        classes=limits[4],
        slots=limits[5],
    )


def _nobody() -> Candidates:
    ints, longs = np.empty(0, np.int32), np.empty(0, np.int64)
    floats, doubles = np.empty(0, np.float32), np.empty(0, np.float64)
    return Candidates(ints, ints, floats, longs, longs, longs, longs, longs, longs, longs, doubles, longs, longs)
