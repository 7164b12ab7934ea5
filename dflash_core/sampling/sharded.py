"""`choose_over_ranks`: the next token of every row where each rank has a part of its logits.

What travels is a number per row for a greedy choice, two for a sampled one; where top-k or top-p has a border to be
found, also how much lies in each of `NUM_BINS` distances from the best, and the ids in the one where the border is.
Never the logits. Every sum is of integers and every comparison of (value, id) pairs: so the token is the one that
`choose_tokens` finds in the whole row, bit for bit on the CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dflash_core.sampling.arrays import SamplingArrays
from dflash_core.sampling.kernels_choose import winning_keys
from dflash_core.sampling.kernels_math import NOISE_BOUNDS
from dflash_core.sampling.kernels_truncation import BINS_PER_NAT, NUM_BINS, UNIT_MASS, masses_of
from dflash_core.sampling.rows import SamplingRows

_LARGEST_ID = 0x7FFFFFFF
_NO_KEY = -(2**63)
_LEAST_KEY = _NO_KEY + 1  # from here on lie all keys


class Exchange(Protocol):
    """What ranks do with a tensor of each; all must call it. `dflash_core.parallel.ranks.Ranks` does it for real."""

    def sum_(self, tensor: Tensor) -> Tensor:
        """In place."""
        ...

    def largest_(self, tensor: Tensor) -> Tensor:
        """In place."""
        ...

    def gather(self, tensor: Tensor) -> Tensor:
        """`[rows, n]` of each side by side, in the order of ranks."""
        ...


@dataclass(frozen=True, slots=True)
class VocabularyShard:
    """The columns of a rank are the ids `first_id` …; those from `vocab_size` on are padding."""

    first_id: int
    vocab_size: int  # of the whole vocabulary, without padding


def choose_over_ranks(
    logits: Tensor, rows: SamplingRows, sampling: SamplingArrays, shard: VocabularyShard, ranks: Exchange
) -> Tensor:
    """The same int64 `[rows]` on every rank, as `choose_tokens` has them of whole rows.

    Args:
        logits: this rank's, any float dtype, `[rows, width]`.
        rows: on the device of `logits`.
        sampling: the same on the host, by which it is decided what must be exchanged.
    """
    ids = torch.arange(shard.first_id, shard.first_id + logits.shape[1], device=logits.device)
    is_real = ids < shard.vocab_size
    divisor = torch.where(rows.temperature == 0.0, 1.0, rows.temperature)
    values = torch.where(is_real, logits.float() / divisor.unsqueeze(1) + 0.0, -torch.inf)
    keys = torch.where(is_real, _pack(values, ids), _NO_KEY)
    best = ranks.largest_(keys.amax(1))
    best_values = _value_of(best)
    tokens = _token_of(best)
    if not sampling.temperature.any():
        return tokens
    values = _truncated(values, keys, best_values, rows, sampling, shard.vocab_size, ranks)
    winners = ranks.largest_(_winning_keys(values, rows, shard.first_id))
    return torch.where((rows.temperature == 0.0) | ~best_values.isfinite(), tokens, _token_of(winners))


def _truncated(
    values: Tensor,
    keys: Tensor,
    best_values: Tensor,
    rows: SamplingRows,
    sampling: SamplingArrays,
    vocab_size: int,
    ranks: Exchange,
) -> Tensor:
    """`values` with −inf where top-k, then top-p, then min-p exclude an id. What is exchanged goes by `sampling` alone,
    which all ranks have."""
    is_sampled = sampling.temperature > 0
    with_top_k = _places(is_sampled & (sampling.top_k > 0) & (sampling.top_k < vocab_size), values)
    with_top_p = _places(is_sampled & (sampling.top_p < 1.0), values)
    borders = torch.full_like(best_values, _LEAST_KEY, dtype=torch.int64)
    if len(with_top_k):
        some = keys[with_top_k]
        counts = (some != _NO_KEY).long()
        bins = _bins(values[with_top_k], best_values[with_top_k])
        borders[with_top_k] = _border(some, counts, bins, rows.top_k[with_top_k].long(), ranks)
    if len(with_top_p):
        some, best = keys[with_top_p], best_values[with_top_p]
        is_counted = (some >= borders[with_top_p].unsqueeze(1)) & best.isfinite().unsqueeze(1)
        masses = torch.where(is_counted, _masses(values[with_top_p], best), 0)
        total = ranks.sum_(masses.sum(1))
        wanted = (rows.top_p[with_top_p].double() * total.double()).ceil().long().clamp(min=1)
        borders[with_top_p] = _border(some, masses, _bins(values[with_top_p], best), wanted, ranks)
    floors = [math.log(min_p) if min_p > 0.0 else -math.inf for min_p in sampling.min_p.tolist()]
    floor = torch.tensor(floors, dtype=torch.float32, device=values.device)
    is_kept = (keys >= borders.unsqueeze(1)) & (values - best_values.unsqueeze(1) >= floor.unsqueeze(1))
    return torch.where(is_kept | ~_places_mask(is_sampled, values), values, -torch.inf)


def _border(keys: Tensor, weights: Tensor, bins: Tensor, wanted: Tensor, ranks: Exchange) -> Tensor:
    """The greatest key of every row from which on the weights of all ranks add up to what is wanted, `[rows]`.

    Args:
        keys, weights, bins: int64 `[rows, width]`; a greater key lies in the same bin or in one before.
        wanted: int64 `[rows]`, at most the sum of all weights.
    """
    in_bins = ranks.sum_(weights.new_zeros(len(keys), NUM_BINS).scatter_add_(1, bins, weights))
    up_to = in_bins.cumsum(1)
    crossing = (up_to < wanted.unsqueeze(1)).sum(1, keepdim=True).clamp(max=NUM_BINS - 1)
    above = up_to.gather(1, crossing) - in_bins.gather(1, crossing)
    is_inside = (bins == crossing) & (weights > 0)
    most = max(1, int(ranks.largest_(is_inside.sum(1).max().reshape(1))))
    found, columns = torch.where(is_inside, keys, _NO_KEY).topk(min(most, keys.shape[1]), dim=1)
    their_weights = weights.gather(1, columns).where(found != _NO_KEY, 0)
    room = (0, most - found.shape[1])
    found = ranks.gather(torch.nn.functional.pad(found, room, value=_NO_KEY))
    their_weights = ranks.gather(torch.nn.functional.pad(their_weights, room))
    found, order = found.sort(dim=1, descending=True)
    reached = above + their_weights.gather(1, order).cumsum(1)
    place = (reached < wanted.unsqueeze(1)).sum(1, keepdim=True).clamp(max=found.shape[1] - 1)
    return found.gather(1, place).squeeze(1)


def _bins(values: Tensor, best: Tensor) -> Tensor:
    """int64 `[rows, width]`: how far each value lies below the best of its row."""
    distance = (best.unsqueeze(1) - values) * float(BINS_PER_NAT)
    return distance.nan_to_num(nan=NUM_BINS).clamp(max=NUM_BINS - 1).long()


def _masses(values: Tensor, best: Tensor) -> Tensor:
    """exp(value − best) in fixed point, int64 `[rows, width]`."""
    if values.device.type == "cpu":
        return torch.from_numpy(masses_of(values.contiguous().numpy(), best.numpy()))
    return ((values - best.unsqueeze(1)).exp().double() * UNIT_MASS).long()


def _winning_keys(values: Tensor, rows: SamplingRows, first_id: int) -> Tensor:
    """The greatest key of value + noise of every row, int64 `[rows]`."""
    if values.device.type == "cpu":
        seeds, positions = rows.seeds.numpy(), rows.positions.numpy()
        return torch.from_numpy(winning_keys(values.contiguous().numpy(), first_id, seeds, positions, NOISE_BOUNDS))
    # Here, because Triton exists on Linux only and takes a second to import.
    from dflash_core.sampling.device.noise import noise_of_ids

    scores = values + noise_of_ids(rows.seeds, rows.positions, first_id, values.shape[1])
    return _pack(scores, torch.arange(first_id, first_id + values.shape[1], device=values.device)).amax(1)


def _pack(values: Tensor, ids: Tensor) -> Tensor:
    """Keys as in `dflash_core.sampling.device.kernels.keys`: a greater one has the greater value or the lower id."""
    numbers = torch.where(values.isnan(), torch.nan, values + 0.0)
    bits = numbers.view(torch.int32)
    ordered = bits ^ ((bits >> 31) & _LARGEST_ID)
    return (ordered.long() << 32) | (ids ^ _LARGEST_ID)


def _value_of(keys: Tensor) -> Tensor:
    ordered = (keys >> 32).int()
    return (ordered ^ ((ordered >> 31) & _LARGEST_ID)).view(torch.float32)


def _token_of(keys: Tensor) -> Tensor:
    """−1 for a NaN and for −inf."""
    values = _value_of(keys)
    return torch.where(values > -torch.inf, (keys & _LARGEST_ID) ^ _LARGEST_ID, -1)


def _places(is_meant: npt.NDArray[np.bool_], values: Tensor) -> Tensor:
    return torch.from_numpy(np.flatnonzero(is_meant)).to(values.device)


def _places_mask(is_meant: npt.NDArray[np.bool_], values: Tensor) -> Tensor:
    """bool `[rows, 1]`."""
    return torch.from_numpy(is_meant).to(values.device).unsqueeze(1)
