"""The drafter's ranking of its candidates, with the noise that the target will use; in numba or in Triton.

Common random numbers: Daliri, Musco, Suresh, "Coupling without Communication and Drafter-Invariant Speculative
Decoding" (2024); the penalty in place of a hard cut and the sharpness are this project's (ARCHITECTURE section 1).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dflash_core.contracts import DEFAULT_RANKING, SamplingParams
from dflash_core.sampling.kernels_rank import rank_rows
from dflash_core.sampling.rows import RankingRows, SamplingRows


def rank_candidates(
    logits: Tensor,
    rows: SamplingRows,
    ranking: RankingRows,
    vocab_size: int,
    num_candidates: int,
    sharpness: float,
) -> tuple[Tensor, Tensor]:
    """The likeliest tokens of every row: ids int32 and log-probabilities fp32, both `[rows, num_candidates]`.

    Score = log_softmax((l + n·g − c·[id outside the row's top-k, top-p, min-p]) / s), with g the noise and n the row's
    temperature, or 0 where the row is ranked without noise; a greedy row has log_softmax(l). Sorted best first, equal
    scores by the lowest id.

    Args:
        logits: l, any float dtype, `[rows, width]`, on the CPU or a GPU; ids from `vocab_size` on are padding.
        rows: on the device of `logits`; `positions` are those of the tokens predicted.
        ranking: there too: n, and c in nats before division by s.
        num_candidates: at most `vocab_size`, and on a GPU at most 512 (`InvalidSettings` beyond).
        sharpness: s, above 0.
    """
    assert 0 < num_candidates <= vocab_size, (num_candidates, vocab_size)
    assert sharpness > 0.0, sharpness
    if logits.device.type == "cuda":
        # Here, because Triton exists on Linux only and takes a second to import.
        from dflash_core.sampling.device.rank import rank_candidates_op

        ranked: tuple[Tensor, Tensor] = rank_candidates_op(
            logits.detach(),
            rows.temperature,
            rows.top_k,
            rows.top_p,
            rows.min_p,
            rows.seeds,
            rows.positions,
            ranking.noise_scale,
            ranking.truncation_penalty,
            vocab_size,
            num_candidates,
            sharpness,
        )
        return ranked
    ids = np.empty((len(logits), num_candidates), np.int32)
    scores = np.empty((len(logits), num_candidates), np.float32)
    rank_rows(
        logits.detach().float().contiguous().numpy(),
        vocab_size,
        rows.temperature.numpy(),
        rows.top_k.numpy(),
        rows.top_p.numpy(),
        rows.min_p.numpy(),
        rows.seeds.numpy(),
        rows.positions.numpy(),
        ranking.noise_scale.numpy(),
        ranking.truncation_penalty.numpy(),
        np.float32(sharpness),
        ids,
        scores,
    )
    return torch.from_numpy(ids), torch.from_numpy(scores)


def warm_up() -> None:
    """Compiles (or loads from the cache) the CPU path, so that the first draft does not wait for it."""
    rows = SamplingRows.of([(SamplingParams(), 0)])
    rank_candidates(torch.zeros(1, 1), rows, RankingRows.of([DEFAULT_RANKING], rows), 1, 1, 1.0)
