"""Every node that a batch could have, one by one, and which of them the best trees hold. Slow and plain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dflash_core.contracts import DraftTree
from dflash_core.trees.acceptance import AcceptanceModel
from dflash_core.trees.build import NodeBudget, TreeCandidates
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


def slow_logit(score: float) -> float:
    bounded = min(max(float(score), -16.0), -1e-6)
    return bounded - math.log(1.0 - math.exp(bounded))


def slow_rank_bucket(rank: int) -> int:
    """0, 1, 2, 3–4, 5–7, 8 and more."""
    return sum(rank >= first for first in (1, 2, 3, 5, 8))


def slow_acceptance(table: np.ndarray, depth: int, rank_bucket: int, match: int, logit: float) -> float:
    """`table` `[kinds, buckets]`: depth bias, depth slope, rank bias, match bias, match slope."""
    deep = min(depth - 1, 15)
    z = table[0, deep] + table[2, rank_bucket]
    z += table[3, match] + (table[1, deep] + table[4, match]) * logit
    return 1.0 / (1.0 + math.exp(-z))


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
        scores = c.scores[depth - 1].tolist()
        num_listed = next((i for i, score in enumerate(scores) if not score > -math.inf), len(scores))
        listed = list(zip(c.token_ids[depth - 1].tolist()[:num_listed], scores[:num_listed], strict=True))
        continuation, match_len = -1, 0
        if history is not None:
            continuation, match_len = slow_match([*history, *path], history, num_buckets)
        missed, hit = (0, 0) if match_len == 0 else (2 * match_len - 3, 2 * match_len - 2)
        rated = [
            (slow_acceptance(tables[spine], depth, slow_rank_bucket(rank), missed, slow_logit(score)), token, rank == 0)
            for rank, (token, score) in enumerate(listed)
            if match_len == 0 or token != continuation
        ]
        if match_len:
            rank = [token for token, _ in listed].index(continuation) if continuation in dict(listed) else -1
            bucket = slow_rank_bucket(rank) if rank >= 0 else 6
            logit = slow_logit(listed[rank][1] if listed else -math.inf)  # where it is not listed, the last one's
            probability_of_match = slow_acceptance(tables[spine], depth, bucket, hit, logit)
            place = next((i for i, child in enumerate(rated) if probability_of_match >= child[0]), len(rated))
            rated.insert(place, (probability_of_match, continuation, rank == 0))
        left, last = 1.0, 1.0
        for child_probability, token, is_spine in rated[: c.max_width]:
            last = min(child_probability, last, left)
            left -= last
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
