"""Top-k, then top-p, then min-p, as one mask per row; the torch form, on any device.

All three keep a prefix of the same order (value falling, then id rising), so that equal values at a border are resolved
to the lowest id.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dflash_core.sampling.rows import SamplingRows

_LARGEST_ID = 0x7FFFFFFF


def order_keys(values: Tensor) -> Tensor:
    """int64 `[rows, vocab]` that rise with the fp32 `values` and, among equal ones, fall with the id."""
    bits = (values + 0.0).view(torch.int32)  # −0 becomes 0
    ordered = (bits ^ ((bits >> 31) & _LARGEST_ID)).long()
    return (ordered << 32) | (_LARGEST_ID - torch.arange(values.shape[1], device=values.device))


def keep_mask(scaled_logits: Tensor, rows: SamplingRows) -> Tensor:
    """bool `[rows, vocab]`: the ids that top-k, top-p and min-p leave. Rows without truncation keep all.

    Top-p keeps the smallest set whose mass, after top-k and renormalised, reaches `top_p`, the crossing id included.
    Min-p keeps ids of at least `min_p` times the best probability: logits within log(min_p) of the best.

    Args:
        scaled_logits: fp32 `[rows, vocab]`, logits / T.
    """
    best = scaled_logits.amax(dim=1, keepdim=True)
    kept = (scaled_logits - best) >= rows.min_p.double().log().float()[:, None]
    width = min(rows.border_width, scaled_logits.shape[1])
    if width == 0:
        return kept
    keys = order_keys(scaled_logits)
    top_keys = torch.topk(keys, width, dim=1).values if width < keys.shape[1] else keys.sort(descending=True).values
    top_values = scaled_logits.gather(1, _LARGEST_ID - (top_keys & _LARGEST_ID))
    index = torch.arange(width, device=keys.device)
    in_top_k = (rows.top_k[:, None] == 0) | (index < rows.top_k[:, None])
    weights = torch.where(in_top_k, (top_values - best).exp().double(), 0.0)
    mass_before = torch.nn.functional.pad(weights.cumsum(dim=1)[:, :-1], (1, 0))
    wanted_mass = rows.top_p.double()[:, None] * weights.sum(dim=1, keepdim=True)
    in_top_p = (rows.top_p[:, None] >= 1.0) | (mass_before < wanted_mass) | (index == 0)
    last = (in_top_k & in_top_p).sum(dim=1, keepdim=True) - 1
    has_border = ((rows.top_k > 0) | (rows.top_p < 1.0))[:, None]
    return kept & (~has_border | (keys >= top_keys.gather(1, last)))
