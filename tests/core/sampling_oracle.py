"""The choice of a token and the drafter's ranking, restated for one row in numpy with full sorts; and random inputs."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from dflash_core.contracts import DraftRanking, SamplingParams
from dflash_core.sampling import noise


def processed(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """fp32 logits / T with −inf where top-k, then top-p, then min-p exclude an id; T > 0."""
    values = logits.astype(np.float32) / np.float32(params.temperature)
    order = np.argsort(-values, kind="stable")  # equal values by rising id
    if params.top_k > 0:
        order = order[: params.top_k]
    if params.top_p < 1.0:
        weights = np.exp(values[order] - values.max()).astype(np.float64)
        mass = np.cumsum(weights)
        order = order[: 1 + int((mass < np.float64(np.float32(params.top_p)) * mass[-1]).sum())]
    if params.min_p > 0.0:
        floor = np.float32(np.log(np.float64(np.float32(params.min_p))))
        order = order[values[order] - values.max() >= floor]
    result = np.full_like(values, -np.inf)
    result[order] = values[order]
    return result


def scores(logits: np.ndarray, params: SamplingParams, position: int) -> np.ndarray:
    """What the choice is the argmax of, fp32 `[vocab]`."""
    if params.is_greedy:
        return logits.astype(np.float32)
    return processed(logits, params) + noise.gumbel(params.seed, position, np.arange(len(logits)))


def draft_scores(
    logits: np.ndarray,
    params: SamplingParams,
    position: int,
    ranking: DraftRanking,
    sharpness: float,
) -> np.ndarray:
    """The drafter's log-probabilities, float64 `[vocab]`."""
    values = logits.astype(np.float64)
    if not params.is_greedy:
        if ranking.uses_noise:
            values = values + params.temperature * noise.gumbel(params.seed, position, np.arange(len(logits)))
        values = values - ranking.truncation_penalty * np.isneginf(processed(logits, params))
        values = values / sharpness
    shifted = values - values.max()
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum())
    return result


def lies_on_top_p_border(logits: np.ndarray, params: SamplingParams) -> bool:
    """Whether a top_p larger or smaller by 1e-6 would keep another set."""
    if params.top_p == 1.0:
        return False
    kept = [
        np.isfinite(
            processed(
                logits,
                SamplingParams(params.temperature, params.top_k, min(params.top_p * factor, 0.9999999), params.min_p),
            )
        )
        for factor in (1 - 1e-6, 1 + 1e-6)
    ]
    return not np.array_equal(*kept)


rankings = st.builds(
    DraftRanking, uses_noise=st.booleans(), truncation_penalty=st.sampled_from([0.0, 0.0, 1.5, 2.0, 1000.0])
)

sampling_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.0, 0.05, 0.3, 0.7, 1.0, 1.5, 8.0]),
    top_k=st.sampled_from([0, 0, 1, 2, 5, 20, 64, 65, 1000]),
    top_p=st.sampled_from([1.0, 1.0, 1e-6, 0.1, 0.5, 0.8, 0.95, 0.999]),
    min_p=st.sampled_from([0.0, 0.0, 0.01, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 2**64 - 1),
)


def random_logits(seed: int, rows: int, vocab: int, spread: float, num_levels: int | None) -> np.ndarray:
    """Normal logits; with `num_levels` rounded to that many levels per unit, so that many are equal."""
    logits = np.random.default_rng(seed).normal(size=(rows, vocab)).astype(np.float32) * np.float32(spread)
    return logits if num_levels is None else np.round(logits * num_levels) / np.float32(num_levels)


def random_rows(seed: int, num_rows: int) -> list[tuple[SamplingParams, int]]:
    """Parameters and positions of `num_rows` rows, as `sampling_params` draws them, but a fixed function of `seed`."""
    rng = np.random.default_rng(seed)
    return [
        (
            SamplingParams(
                temperature=float(rng.choice([0.0, 0.05, 0.3, 0.7, 1.0, 1.5, 8.0])),
                top_k=int(rng.choice([0, 0, 1, 2, 5, 20, 64, 65, 1000])),
                top_p=float(rng.choice([1.0, 1.0, 1e-6, 0.1, 0.5, 0.8, 0.95, 0.999])),
                min_p=float(rng.choice([0.0, 0.0, 0.01, 0.1, 0.5, 1.0])),
                seed=int(rng.integers(2**64, dtype=np.uint64)),
            ),
            int(rng.integers(2**20)),
        )
        for _ in range(num_rows)
    ]


def random_rankings(seed: int, num_rows: int) -> list[DraftRanking]:
    """As `random_rows`: a fixed function of `seed`, with and without noise."""
    rng = np.random.default_rng(seed)
    return [DraftRanking(i % 2 == seed % 2, float(rng.choice([0.0, 1.0, 1.5, 2.0, 5.0]))) for i in range(num_rows)]
