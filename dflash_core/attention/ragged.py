"""Attention of packed rows over paged prefixes and in-flight keys: with torch's own operators, or in Triton."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dflash_core.attention.backend import AttentionBackend, picks_triton
from dflash_core.attention.batch import RaggedBatch
from dflash_core.attention.cpu_gather import gather
from dflash_core.attention.padding import PaddedGroup, padded_groups


def ragged_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kv_pages: Tensor,
    batch: RaggedBatch,
    *,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    backend: AttentionBackend = AttentionBackend.AUTO,
) -> Tensor:
    """Softmax attention of every row over its sequence's pages and the in-flight keys that it sees.

    Args:
        query: `[num_rows, num_heads, head_dim]`; query head h reads KV head h // (num_heads // num_kv_heads).
        key: `[num_rows, num_kv_heads, head_dim]`, the in-flight keys; they are inputs, not yet in pages.
        value: as `key`.
        kv_pages: `[2, num_blocks, kv_block_size, num_kv_heads, head_dim]`, one layer's pages, keys then values.
        batch: which rows belong together and see what.
        scale: multiplies the scores.
        sliding_window: a row sees only the keys at the last `sliding_window` positions, its own among them.
        softcap: scores become `softcap · tanh(score / softcap)` before masking.
        backend: what computes it.

    Returns:
        `[num_rows, num_heads, head_dim]`, in the query's dtype.
    """
    if picks_triton(backend, query.device):
        # Here, because Triton exists on Linux only and takes a second to import.
        from dflash_core.attention.split_kv.attention import split_kv_attention

        return split_kv_attention(
            query, key, value, kv_pages, batch, scale=scale, sliding_window=sliding_window, softcap=softcap
        )
    groups = padded_groups(batch)
    if len(groups) == 1:
        return _attend(query, key, value, kv_pages, groups[0], scale, sliding_window, softcap)
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    for group in groups:
        output[group.rows] = _attend(query[group.rows], key, value, kv_pages, group, scale, sliding_window, softcap)
    return output


def _attend(
    query: Tensor,  # [group rows, num_heads, head_dim]
    key: Tensor,  # [num_rows, num_kv_heads, head_dim]
    value: Tensor,
    kv_pages: Tensor,
    group: PaddedGroup,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
) -> Tensor:
    _, num_heads, head_dim = query.shape
    num_sequences = group.num_sequences
    if kv_pages.device.type == "cpu" and kv_pages.dtype == torch.float32:
        keys, values = gather(key, value, kv_pages, group.batch, group.sequences, group.max_keys)
    else:
        keys, values = _gather(key[group.rows], value[group.rows], kv_pages, group)

    if group.row_cells is not None:
        padded = query.new_zeros(num_sequences * group.max_rows, num_heads, head_dim)
        query = padded.index_copy_(0, group.row_cells, query)
    # The heads that read one KV head are rows of one: so they share its keys, which enable_gqa would copy for each.
    num_kv_heads = keys.shape[1]
    heads_per_kv = num_heads // num_kv_heads
    queries = query.view(num_sequences, group.max_rows, num_kv_heads, heads_per_kv, head_dim).transpose(1, 2)
    queries = queries.reshape(num_sequences, num_kv_heads, group.max_rows * heads_per_kv, head_dim)

    mask = group.mask(sliding_window, query.dtype, heads_per_kv)
    if softcap is None:
        output = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
    else:
        output = _softcapped(queries, keys, values, mask, scale, softcap)
    output = output.view(num_sequences, num_kv_heads, group.max_rows, heads_per_kv, head_dim).transpose(1, 2)
    output = output.reshape(num_sequences * group.max_rows, num_heads, head_dim)
    return output if group.row_cells is None else output.index_select(0, group.row_cells)


def _gather(key: Tensor, value: Tensor, kv_pages: Tensor, group: PaddedGroup) -> tuple[Tensor, Tensor]:
    """Keys and values `[num_sequences, num_kv_heads, max_keys, head_dim]` of a group, whose rows' own are given."""
    _, num_kv_heads, head_dim = key.shape
    gathered = kv_pages.flatten(1, 2).index_select(1, group.slots)  # [2, num_sequences · max_keys, kv heads, dim]
    keys, values = gathered.unbind(0)
    keys[group.inflight_cells] = key
    values[group.inflight_cells] = value
    dense = gathered.view(2, group.num_sequences, group.max_keys, num_kv_heads, head_dim).transpose(2, 3)
    keys, values = dense.unbind(0)
    return keys, values


def _softcapped(
    queries: Tensor,  # [num_sequences, num_kv_heads, max_rows · heads per KV head, head_dim]
    keys: Tensor,  # [num_sequences, num_kv_heads, max_keys, head_dim]
    values: Tensor,
    mask: Tensor | None,  # [num_sequences, 1, max_rows · heads per KV head, max_keys]
    scale: float,
    softcap: float,
) -> Tensor:
    """What torch's fused attention cannot do: scores pass through tanh before the mask; in fp32."""
    scores = queries.float() @ keys.float().transpose(2, 3) * (scale / softcap)
    scores = torch.tanh(scores) * softcap
    if mask is not None:
        scores = scores + mask
    return scores.softmax(-1).to(values.dtype) @ values
