"""The likeliest nodes of a whole batch.

DDTree (arXiv 2604.12989) takes nodes from a heap, best first. Over many sequences a heap spends most of its time
sifting; but a node's probability never exceeds its parent's or its likelier sibling's, so a walk in preorder that turns
back below a threshold finds exactly the nodes above it.
"""

from __future__ import annotations

import numpy as np

from dflash_core.jit import jit
from dflash_core.trees.matches import Histories
from dflash_core.trees.packed import FLOOR, NEGLIGIBLE, Candidates, Found, check
from dflash_core.trees.scoring import Doubles
from dflash_core.trees.sequence_search import new_scratch, search_sequence

# A sequence that lacks nodes it must have is searched again with a threshold lower by this factor.
_LOWER = 1.0 / 8.0
# Whatever the rounding, a node is found whose key equals the threshold.
_MARGIN = 1.0 - 1e-12


@jit
def _nth_largest(values: Doubles, n: int) -> float:
    """`n` from 1 on."""
    value: float = np.partition(values, len(values) - n)[len(values) - n]
    return value


@jit
def _keep_best(found: Found, begin: int, end: int, num_kept: int) -> int:
    """Drops all but the best of a sequence's nodes, their order kept; returns the new end."""
    tokens, depths, keys = found.tokens, found.depths, found.keys
    cutoff = _nth_largest(keys[begin:end], num_kept)
    num_equal = num_kept - np.count_nonzero(keys[begin:end] > cutoff)
    kept = begin
    for i in range(begin, end):
        if keys[i] < cutoff:
            continue
        if keys[i] == cutoff:
            if num_equal == 0:
                continue
            num_equal -= 1
        keys[kept], tokens[kept], depths[kept] = keys[i], tokens[i], depths[i]
        kept += 1
    return kept


@jit
def _mark_floor(found: Found, begin: int, end: int, num_wanted: int, threshold: float) -> int:
    """Marks the nodes that a sequence gets in any case; drops others below the threshold. Returns the new end."""
    tokens, depths, keys = found.tokens, found.depths, found.keys
    cutoff = _nth_largest(keys[begin:end], num_wanted)
    num_equal = num_wanted - np.count_nonzero(keys[begin:end] > cutoff)
    kept = begin
    for i in range(begin, end):
        key = keys[i]
        is_wanted = key > cutoff
        if key == cutoff and num_equal > 0:
            num_equal -= 1
            is_wanted = True
        if not is_wanted and key < threshold:
            continue
        keys[kept], tokens[kept], depths[kept] = key + FLOOR if is_wanted else key, tokens[i], depths[i]
        kept += 1
    return kept


@jit
def find_nodes(
    candidates: Candidates,
    histories: Histories,  # of one slot at least
    parameters: Doubles,  # [NUM_CLASSES, 2, NUM_KINDS, NUM_BUCKETS]
    threshold: float,  # ≥ NEGLIGIBLE
    capacity: int,
) -> Found:
    """All nodes whose key reaches the threshold; at most `max_nodes` of a sequence, and its `min_nodes` best anyway.

    `ends` is empty where there are more than `capacity`.
    """
    check(candidates)
    num_sequences = len(candidates.roots)
    most_levels, most_ranks = 1, 0
    for sequence in range(num_sequences):
        most_levels = max(most_levels, candidates.max_depths[sequence] + 1)
        most_ranks = max(most_ranks, candidates.num_ranks[sequence])
    scratch = new_scratch(most_levels, most_ranks)
    found = Found(
        np.empty(capacity, np.int32),
        np.empty(capacity, np.int32),
        np.empty(capacity, np.float64),
        np.empty(num_sequences, np.int64),
        True,
    )
    # Looked up here: in the loop each would count a reference.
    max_nodes, min_nodes, weights, ends = candidates.max_nodes, candidates.min_nodes, candidates.weights, found.ends
    end, is_complete = 0, True
    for sequence in range(num_sequences):
        most = max_nodes[sequence]
        wanted = min(min_nodes[sequence], most)
        begin, has_less_likely = end, False
        negligible = NEGLIGIBLE / weights[sequence]
        least = max(threshold / weights[sequence] * _MARGIN, negligible)
        while most > 0:
            end, has_less_likely = search_sequence(
                sequence, candidates, histories, parameters, scratch, found, begin, least
            )
            if end < 0:
                return Found(found.tokens, found.depths, found.keys, found.ends[:0], False)
            if end - begin >= wanted or not has_less_likely:
                break
            least = max(least * _LOWER, negligible)
        is_complete &= not has_less_likely or end - begin >= most
        if end - begin > most:
            end = _keep_best(found, begin, end, most)
        if wanted > 0 and end > begin:
            num_found = end - begin
            end = _mark_floor(found, begin, end, min(wanted, num_found), threshold)
            is_complete &= end - begin == num_found
        ends[sequence] = end
    return Found(found.tokens[:end], found.depths[:end], found.keys[:end], found.ends, is_complete)
