"""`choose_tokens`: the next token of every row, argmax(processed logits / T + noise)."""

from __future__ import annotations

import torch
from torch import Tensor

from dflash_core.contracts import SamplingParams
from dflash_core.sampling.kernels_cpu import choose_rows
from dflash_core.sampling.kernels_math import NOISE_BOUNDS
from dflash_core.sampling.noise_torch import gumbel
from dflash_core.sampling.rows import SamplingRows
from dflash_core.sampling.truncation import keep_mask


def choose_tokens(logits: Tensor, rows: SamplingRows, vocab_size: int) -> Tensor:
    """The token of every row, int64 `[rows]`; −1 for a row that holds a NaN or nothing above −inf.

    Divide by T, top-k, top-p, min-p, add the noise of (seed, position, id), argmax with ties to the lowest id; a
    greedy row is the plain argmax. All in fp32. A row's result depends on nothing but that row.

    Args:
        logits: any float dtype, `[rows, width]`; ids from `vocab_size` on are padding and never chosen.
        rows: on the device of `logits`.
    """
    if logits.device.type != "cpu":
        return choose_tokens_torch(logits, rows, vocab_size)
    chosen = choose_rows(
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
    return torch.from_numpy(chosen)


def choose_tokens_torch(logits: Tensor, rows: SamplingRows, vocab_size: int) -> Tensor:
    """`choose_tokens` on any device, with the noise of every id."""
    values = logits.detach()[:, :vocab_size].float()
    if rows.any_sampled:
        is_greedy = (rows.temperature == 0.0)[:, None]
        scaled = values / torch.where(is_greedy, 1.0, rows.temperature[:, None])
        if rows.any_truncated:
            scaled = scaled.masked_fill(~keep_mask(scaled, rows), -torch.inf)
        # A NaN fails every border comparison: it must not be masked out of sight.
        scaled = torch.where(values.isnan(), values, scaled)
        noisy = scaled + gumbel(rows.seeds, rows.positions, vocab_size)
        values = torch.where(is_greedy, values, noisy)
    best, chosen = values.max(dim=1)
    return torch.where(best > -torch.inf, chosen, -1)


def warm_up() -> None:
    """Compiles (or loads from the cache) the CPU path, so that the first round does not wait for it."""
    choose_tokens(torch.zeros(1, 1), SamplingRows.of([(SamplingParams(), 0)]), 1)


def choose_tokens_op(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    vocab_size: int,
) -> Tensor:
    """`choose_tokens` without a word from the host: whatever the rows want is computed for all of them."""
    rows = SamplingRows(temperature, top_k, top_p, min_p, seeds, positions, True, True, 2**31 - 1)
    return choose_tokens_torch(logits, rows, vocab_size)
