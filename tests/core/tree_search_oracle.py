"""Every node that a batch could have, one by one, and which of them the best trees hold. Slow and plain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dflash_core.contracts import DraftTree
from dflash_core.trees.acceptance import AcceptanceModel
from dflash_core.trees.build import NodeBudget
from dflash_core.trees.candidates import TreeCandidates
from dflash_core.trees.matches import MOST_VISITED
from dflash_core.trees.packed import FLOOR, NEGLIGIBLE
from tests.core.tree_oracle import slow_parents

Path = tuple[int, ...]  # token ids from the root's child on


@dataclass(frozen=True)
class Node:
    sequence: int
    order: int  # in preorder
    path: Path
    key: float
    is_floor: bool = False

    @property
    def rank(self) -> tuple[float, int, int]:
        return (-(self.key + FLOOR if self.is_floor else self.key), self.sequence, self.order)


def slow_bucket(before: int, token: int, num_buckets: int) -> int:
    return ((before * 1_000_003) ^ (token * 7_919)) % num_buckets


def slow_match(tail: Sequence[int], tokens: Sequence[int], num_buckets: int) -> tuple[int, int]:
    """What followed the longest match of the tail's end, at most five tokens, among the latest positions; (−1, 0)."""
    if len(tail) < 2:
        return -1, 0
    wanted = slow_bucket(tail[-2], tail[-1], num_buckets)
    positions = [
        position
        for position in range(len(tokens) - 1, 0, -1)
        if slow_bucket(tokens[position - 1], tokens[position], num_buckets) == wanted
    ]
    best_token, best_len = -1, 0
    for position in positions[:MOST_VISITED]:
        if position + 1 == len(tokens):
            continue
        match_len = 0
        while match_len < min(5, len(tail), position + 1) and tokens[position - match_len] == tail[-1 - match_len]:
            match_len += 1
        if match_len >= 2 and match_len > best_len:
            best_token, best_len = tokens[position + 1], match_len
    return best_token, best_len


def slow_log(score: float) -> float:
    return min(max(float(score), -16.0), 0.0)


def slow_rank_bucket(rank: int) -> int:
    """0, 1, 2, 3–4, 5–7, 8 and more."""
    return sum(rank >= first for first in (1, 2, 3, 5, 8))


@dataclass(frozen=True)
class Child:
    """A token that a node may be followed by."""

    token: int
    rank: int  # −1: the history's, and not among the drafter's candidates
    rank_bucket: int
    match_len: int  # 0: not how the history went on
    log_q: float
    weight: float


def slow_children(
    table: np.ndarray, depth: int, token_ids: Sequence[int], scores: Sequence[float], continuation: int, match_len: int
) -> tuple[list[Child], float, float]:
    """By rank, the unlisted last; log(1 − Σ q) and the weight of none of them.

    `table` `[kinds, buckets]`: slope, bias of ranks, slope and bias of none, slope and bias of matches.
    """
    deep = min(depth - 1, 15)
    num_listed = next((i for i, score in enumerate(scores) if not score > -math.inf), len(scores))
    found = [(token, rank, slow_rank_bucket(rank), slow_log(scores[rank])) for rank, token in enumerate(token_ids)]
    found = found[:num_listed]
    left = math.log(max(1.0 - math.fsum(math.exp(log_q) for *_, log_q in found), 1e-5))
    if match_len and continuation not in token_ids[:num_listed]:
        found.append((continuation, -1, 6, found[-1][3] if found else -16.0))
    children = []
    for token, rank, bucket, log_q in found:
        z, length = table[0, deep] * log_q + table[1, bucket], 0
        if match_len and token == continuation:
            length = match_len
            z += table[4, length - 2] * log_q + table[5, length - 2]
        children.append(Child(token, rank, bucket, length, log_q, math.exp(z)))
    return children, left, math.exp(table[2, deep] * left + table[3, deep])


def possible_nodes(
    sequence: int, c: TreeCandidates, model: AcceptanceModel, history: Sequence[int] | None, num_buckets: int
) -> list[Node]:
    """In preorder, the likeliest child first."""
    nodes: list[Node] = []
    tables = model.parameters[c.context_class]
    most_depth = min(c.max_depth, len(c.token_ids)) if c.token_ids.size else 0

    def visit(path: Path, probability: float, spine: int) -> None:
        depth = len(path) + 1
        if depth > most_depth:
            return
        continuation, match_len = -1, 0
        if history is not None:
            continuation, match_len = slow_match([*history, *path], history, num_buckets)
        ids, scores = c.token_ids[depth - 1].tolist(), c.scores[depth - 1].tolist()
        children, _, none = slow_children(tables[spine], depth, ids, scores, continuation, match_len)
        total = math.fsum(child.weight for child in children) + none
        rated = [(child.weight / total, child.token, child.rank == 0) for child in children if not child.match_len]
        for child in children:
            if child.match_len:
                probability_of_match = child.weight / total
                place = next((i for i, other in enumerate(rated) if probability_of_match >= other[0]), len(rated))
                rated.insert(place, (probability_of_match, child.token, child.rank == 0))
        last = 1.0
        for child_probability, token, is_spine in rated[: c.max_width]:
            last = min(child_probability, last)
            of_path = probability * last
            if of_path < NEGLIGIBLE / c.weight:
                break
            nodes.append(Node(sequence, len(nodes), (*path, token), c.weight * of_path))
            visit((*path, token), of_path, spine if is_spine else 1)

    visit((), 1.0, 0)
    return nodes


def exhaustive_choice(nodes_of: Sequence[list[Node]], candidates: Sequence[TreeCandidates], most: int) -> list[Node]:
    """At most `most` nodes of all, the best first, those in front that their sequences get in any case."""
    chosen: list[Node] = []
    for nodes, c in zip(nodes_of, candidates, strict=True):
        for place, node in enumerate(sorted(nodes, key=lambda node: node.rank)[: c.max_nodes]):
            chosen.append(Node(node.sequence, node.order, node.path, node.key, is_floor=place < c.min_nodes))
    return sorted(chosen, key=lambda node: node.rank)[:most]


def value_of(nodes: Sequence[Node], budget: NodeBudget) -> float:
    """Weighted tokens that nodes add to what roots give, less what the round costs."""
    return math.fsum(node.key for node in nodes) - budget.rate * float(budget.seconds[len(nodes)])


def best_value(chosen: Sequence[Node], budget: NodeBudget) -> float:
    """Of all sizes, floors always included."""
    num_floor = sum(node.is_floor for node in chosen)
    return max(value_of(chosen[:size], budget) for size in range(num_floor, len(chosen) + 1))


def token_paths(tree: DraftTree) -> list[Path]:
    """Of each row but the root, in the order of rows."""
    parents = slow_parents(tree.depths.tolist())
    paths: list[Path] = [()]
    for row in range(1, tree.num_rows):
        paths.append((*paths[parents[row]], int(tree.token_ids[row])))
    return paths[1:]
