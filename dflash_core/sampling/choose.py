"""`choose_tokens`: the next token of every row, argmax(processed logits / T + noise); in numba or in Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from dflash_core.contracts import SamplingParams
from dflash_core.sampling.kernels_choose import choose_rows
from dflash_core.sampling.kernels_math import NOISE_BOUNDS
from dflash_core.sampling.rows import SamplingRows


def choose_tokens(logits: Tensor, rows: SamplingRows, vocab_size: int) -> Tensor:
    """The token of every row, int64 `[rows]`; −1 for a row that holds a NaN or nothing above −inf.

    Divide by T, top-k, top-p, min-p, add the noise of (seed, position, id), argmax with ties to the lowest id; a
    greedy row is the plain argmax. All in fp32. A row's result depends on nothing but that row.

    All three truncations keep a prefix of one order, value falling and then id rising, so that equal values at a
    border are resolved to the lowest id. Top-p keeps the smallest set whose mass, after top-k and renormalised,
    reaches `top_p`, the crossing id included. Min-p keeps ids of at least `min_p` times the best probability: logits
    / T within log(min_p) of the best.

    Args:
        logits: any float dtype, `[rows, width]`, on the CPU or a GPU; ids from `vocab_size` on are padding and never
            chosen.
        rows: on the device of `logits`.
    """
    if logits.device.type == "cuda":
        # Here, because Triton exists on Linux only and takes a second to import.
        from dflash_core.sampling.device.choose import choose_tokens_op

        chosen: Tensor = choose_tokens_op(
            logits.detach(),
            rows.temperature,
            rows.top_k,
            rows.top_p,
            rows.min_p,
            rows.seeds,
            rows.positions,
            vocab_size,
        )
        return chosen
    return torch.from_numpy(
        choose_rows(
            logits.detach().float().contiguous().numpy(),
            vocab_size,
            rows.temperature.numpy(),
            rows.top_k.numpy(),
            rows.top_p.numpy(),
            rows.min_p.numpy(),
            rows.seeds.numpy(),
            rows.positions.numpy(),
            NOISE_BOUNDS,
        )
    )


def warm_up() -> None:
    """Compiles (or loads from the cache) the CPU path, so that the first round does not wait for it."""
    choose_tokens(torch.zeros(1, 1), SamplingRows.of([(SamplingParams(), 0)]), 1)
