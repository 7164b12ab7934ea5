"""Random batches for tree building, small enough for exhaustive search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from dflash_core.trees.acceptance import AcceptanceModel
from dflash_core.trees.build import NodeBudget
from dflash_core.trees.candidates import NO_HISTORY, UNLIMITED_WIDTH, TreeCandidates
from dflash_core.trees.histories import TokenHistories
from dflash_core.trees.scoring import NONE_SLOPE, SLOPE

VOCAB = 14
WINDOW = 64


@dataclass(frozen=True)
class Case:
    """A batch with all that a builder needs."""

    candidates: list[TreeCandidates]
    model: AcceptanceModel
    histories: TokenHistories
    committed: list[list[int] | None]  # what the history of each sequence holds; None: it has none


def log_probabilities(rng: np.random.Generator, depth: int, num_ranks: int) -> np.ndarray:
    """float32 `[depth, num_ranks]`, falling; the best of 50 tokens."""
    logits = -np.sort(-rng.normal(size=(depth, 50)) * 2, axis=1)
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))[:, :num_ranks].astype(np.float32)


def distinct_ids(rng: np.random.Generator, depth: int, num_ranks: int, vocab: int = 100) -> np.ndarray:
    """int32 `[depth, num_ranks]`, distinct within a depth."""
    return np.array([rng.permutation(vocab)[:num_ranks] for _ in range(depth)], dtype=np.int32).reshape(
        depth, num_ranks
    )


def random_model(rng: np.random.Generator, spread: float) -> AcceptanceModel:
    model = AcceptanceModel()
    model.parameters += rng.normal(size=model.parameters.shape) * spread
    slopes = [SLOPE, NONE_SLOPE]
    model.parameters[:, :, slopes] = np.abs(model.parameters[:, :, slopes])
    return model


def _scores(rng: np.random.Generator, kind: str, depth: int, num_ranks: int) -> np.ndarray:
    scores = log_probabilities(rng, depth, num_ranks)
    if kind == "equal":
        scores[:] = np.log(0.5 / max(num_ranks, 1))
    if kind == "wild":  # as no drafter should rank: above 0 and rising in rank
        scores = rng.normal(size=(depth, num_ranks)).astype(np.float32) - np.float32(1)
    if kind == "cut":
        scores[rng.random((depth, num_ranks)) < 0.3] = rng.choice([-np.inf, np.nan])
    return scores


@st.composite
def cases(draw: st.DrawFn, most_sequences: int = 4) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    model = random_model(rng, draw(st.sampled_from([0.0, 0.0, 0.5, 2.0])))
    histories = TokenHistories(window=WINDOW)
    candidates: list[TreeCandidates] = []
    committed: list[list[int] | None] = []
    for _ in range(draw(st.integers(0, most_sequences))):
        depth, num_ranks = draw(st.integers(0, 3)), draw(st.integers(0, 4))
        tokens, slot = None, NO_HISTORY
        if draw(st.booleans()):
            # Few different tokens: every length of match occurs, with a continuation that the drafter lists or not.
            tokens = rng.integers(draw(st.sampled_from([2, 4, VOCAB])), size=draw(st.integers(1, 40))).tolist()
            slot = histories.open()
            histories.extend([slot], [tokens])
        committed.append(tokens)
        candidates.append(
            TreeCandidates(
                root_token=tokens[-1] if tokens else int(rng.integers(VOCAB)),
                token_ids=distinct_ids(rng, depth, num_ranks, VOCAB),
                scores=_scores(
                    rng, draw(st.sampled_from(["plain", "plain", "equal", "wild", "cut"])), depth, num_ranks
                ),
                max_depth=draw(st.integers(0, 4)),
                max_nodes=draw(st.sampled_from([0, 1, 3, 10, 1000])),
                min_nodes=draw(st.sampled_from([0, 0, 0, 1, 4, 30])),
                max_width=draw(st.sampled_from([0, 1, 2, UNLIMITED_WIDTH])),
                weight=draw(st.sampled_from([1.0, 1.0, 0.25, 3.0, 8.0])),
                context_class=int(rng.integers(13)),
                history=slot,
            )
        )
    return Case(candidates, model, histories, committed)


@st.composite
def budgets(draw: st.DrawFn) -> NodeBudget:
    """Costs as rounds have them: padded sizes, falling and rising costs per node, anything; a prefill beside them."""
    most = draw(st.sampled_from([0, 1, 2, 5, 17, 80]))
    kind = draw(st.sampled_from(["steps", "convex", "concave", "random", "free"]))
    sizes = np.arange(most + 1, dtype=np.float64)
    if kind == "steps":
        step = draw(st.integers(2, 9))
        seconds = np.ceil(sizes / step) * 0.01
    elif kind == "convex":
        seconds = sizes**2 * 0.001
    elif kind == "concave":
        seconds = np.sqrt(sizes) * 0.01
    elif kind == "random":
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        seconds = np.cumsum(rng.exponential(size=most + 1) * (rng.random(most + 1) < 0.4)) * 0.01
    else:
        seconds = np.zeros(most + 1)
    prefill_s = draw(st.sampled_from([0.0, 0.35]))
    return NodeBudget(seconds + prefill_s, draw(st.sampled_from([0.0, 0.1, 3.0, 20.0, 300.0])))
