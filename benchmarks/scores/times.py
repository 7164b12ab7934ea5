"""How long it takes to build trees for a full batch, and to learn from them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dflash_core.trees.acceptance import AcceptanceModel
from dflash_core.trees.build import NodeBudget, TreeBuilder
from dflash_core.trees.candidates import TreeCandidates
from dflash_core.trees.histories import TokenHistories

_VOCAB = 32_000
_HISTORY_TOKENS = 1_000


@dataclass(frozen=True, slots=True)
class BuildTimes:
    """Milliseconds: the least of all calls, which is what the work takes undisturbed, and their median."""

    build_least_ms: float
    build_median_ms: float
    learn_least_ms: float
    learn_median_ms: float


def build_times(
    num_sequences: int, nodes_per_sequence: int, depth: int, num_ranks: int, num_calls: int, seed: int = 0
) -> BuildTimes:
    """Of random candidates; of the bigrams of likely ones, a third is in the sequence's history."""
    rng = np.random.default_rng(seed)
    histories = TokenHistories()
    candidates = []
    for _ in range(num_sequences):
        logits = -np.sort(-3.0 * rng.normal(size=(depth, 512)), axis=1)
        scores = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))[:, :num_ranks].astype(np.float32)
        ids = np.stack([rng.choice(_VOCAB, num_ranks, replace=False) for _ in range(depth)]).astype(np.int32)
        tokens = rng.integers(_VOCAB, size=_HISTORY_TOKENS)
        pairs = [
            (ids[at, one], ids[at + 1, other])
            for at in range(depth - 1)
            for one in range(4)
            for other in range(4)
            if rng.random() < 1 / 3
        ]
        tokens[: 2 * len(pairs)] = np.ravel(pairs)
        slot = histories.open()
        histories.extend([slot], [tokens.tolist()])
        candidates.append(TreeCandidates(int(tokens[-1]), ids, scores, depth, 4 * nodes_per_sequence, history=slot))
    builder = TreeBuilder(AcceptanceModel(), histories)
    budget = NodeBudget.of(num_sequences * nodes_per_sequence)
    batch = builder.build(candidates, budget)
    committed = [c.token_ids[:3, 0].tolist() for c in candidates]
    build = _milliseconds(lambda: builder.build(candidates, budget), num_calls)
    learn = _milliseconds(lambda: builder.learn(batch, committed), num_calls)
    return BuildTimes(min(build), statistics.median(build), min(learn), statistics.median(learn))


def _milliseconds(run: Callable[[], object], num_calls: int) -> list[float]:
    found = []
    for _ in range(num_calls):
        begin = time.perf_counter()
        run()
        found.append((time.perf_counter() - begin) * 1e3)
    return found
