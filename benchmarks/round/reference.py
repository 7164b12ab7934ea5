"""The reference arms: a round as the published implementation of DDTree (arXiv 2604.12989) runs it.

transformers' own forward, eager, with its SDPA attention, a `DynamicCache` and a dense additive mask; the choices go to
the host, which walks the tree and keeps the accepted rows of the cache. Made a batch of equal lengths, which the
published one is not. The trees' visibility and child tables are made beforehand, as ours are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel

from benchmarks.random_pair import RandomPair
from benchmarks.round.ours import APPENDED
from benchmarks.round.points import Round
from benchmarks.round.timed import Stopwatch, Timed
from dflash_core.contracts import DraftTree
from dflash_core.models.drafter import DFlashDrafter
from dflash_core.trees.structure import end_rows, parents

_NUM_CANDIDATES = 64
_MASK_ALIGNMENT = 16  # elements; SDPA copies masks whose rows are not aligned


class ReferenceTarget:
    """Its cache is filled with random numbers, which take as long as any."""

    def __init__(
        self, pair: RandomPair, twin: PreTrainedModel, batch: int, context: int, max_model_len: int, max_tree_rows: int
    ) -> None:
        """`twin` is the target. Raises `torch.OutOfMemoryError`."""
        self._pair, self._model, self._context = pair, twin, context
        self._layer_ids = pair.drafter.config.target_layer_ids
        self._cache = random_cache(pair, pair.shape.num_layers, batch, context)
        width = -(-(max_model_len + max_tree_rows) // _MASK_ALIGNMENT) * _MASK_ALIGNMENT
        shape = (batch, 1, max_tree_rows, width)
        self._mask = torch.zeros(shape, dtype=pair.dtype, device=pair.device)

    @torch.inference_mode()
    def run(self, round_: Round, trees: Sequence[DraftTree]) -> Timed:
        """A prefill chunk is a forward of its own: rows of two lengths do not fit one."""
        rows = [HostTree(tree) for tree in trees]
        prompt = torch.randint(self._pair.shape.vocab_size, (1, round_.prefill_rows))
        context = self._context
        with Stopwatch(self._pair.device) as watch:
            if round_.prefill_rows:
                self._prefill(prompt)
            paths = self._verify(rows)
        return Timed(watch.ms, sum(len(path) - 1 for path in paths), context)

    def _prefill(self, prompt: Tensor) -> None:
        output = self._model(
            prompt.to(self._pair.device),
            past_key_values=DynamicCache(),
            use_cache=True,
            logits_to_keep=1,
            output_hidden_states=True,
        )
        self._features(output.hidden_states)

    def _verify(self, trees: Sequence[HostTree]) -> list[list[int]]:
        device, start, num_rows = self._pair.device, self._context, trees[0].token_ids.shape[0]
        token_ids = torch.stack([tree.token_ids for tree in trees]).to(device)
        depths = torch.stack([tree.depths for tree in trees]).to(device)
        visible = torch.stack([tree.visible for tree in trees]).to(device)
        block = self._mask[:, 0, :num_rows, start : start + num_rows]
        block.fill_(torch.finfo(self._mask.dtype).min)
        block.masked_fill_(visible, 0)
        output = self._model(
            token_ids,
            position_ids=depths + start,
            attention_mask=self._mask[:, :, :num_rows, : start + num_rows],
            past_key_values=self._cache,
            use_cache=True,
            output_hidden_states=True,
        )
        choices = output.logits.argmax(-1).tolist()
        paths = [tree.walk(chosen) for tree, chosen in zip(trees, choices, strict=True)]
        (length,) = {len(path) for path in paths}  # a batch of equal lengths stays one
        kept = torch.tensor(paths, device=device)  # [batch, accepted rows]
        compact(self._cache, start, kept)
        self._features(output.hidden_states).take_along_dim(kept[..., None], 1)
        block.fill_(0)
        self._context += length
        return paths

    def _features(self, hidden_states: Sequence[Tensor]) -> Tensor:
        return torch.cat([hidden_states[i + 1] for i in self._layer_ids], -1)


class ReferenceDrafter:
    """The drafter's own module over dense caches. The target's raw features lie on its device already."""

    def __init__(self, pair: RandomPair, twin: DFlashDrafter, batch: int, context: int) -> None:
        """`twin` is the drafter. Raises `torch.OutOfMemoryError`."""
        self._pair, self._model, self._context = pair, twin, context
        self._shared = pair.embedding_and_head()
        self._cache = random_cache(pair, pair.shape.num_draft_layers, batch, context)
        config = self._model.config
        self._raw = torch.randn(batch, APPENDED, config.num_captured * config.hidden_size, device=pair.device)
        self._raw = self._raw.to(pair.dtype)
        block = torch.full((batch, config.draft_block_size), config.mask_token_id, device=pair.device)
        block[:, 0] = 1
        self._block = block

    @torch.inference_mode()
    def run(self) -> Timed:
        context = self._context
        with Stopwatch(self._pair.device) as watch:
            self._draft()
        return Timed(watch.ms, context=context)

    def _draft(self) -> None:
        model, start = self._model, self._context + APPENDED
        positions = torch.arange(self._context, start + self._block.shape[1], device=self._pair.device)[None]
        features = model.project_context(self._raw)
        context_kv = model.context_kv(features, positions[:, :APPENDED])

        def attend(layer_idx: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            context_key, context_value = context_kv[layer_idx]
            keys, values = self._cache.update(
                torch.cat([context_key, key], 1).transpose(1, 2),
                torch.cat([context_value, value], 1).transpose(1, 2),
                layer_idx,
            )
            return F.scaled_dot_product_attention(query.transpose(1, 2), keys, values, enable_gqa=True).transpose(1, 2)

        hidden = model(self._shared.embed(self._block), positions[:, APPENDED:], attend)
        crop(self._cache, start)
        logits = self._shared.logits(hidden[:, 1:]).float()
        best = logits.topk(min(_NUM_CANDIDATES, logits.shape[-1]), -1)
        (best.values - logits.logsumexp(-1, keepdim=True)).cpu()
        best.indices.cpu()
        self._context = start


class HostTree:
    """What the reference's tree building leaves behind of a tree, on the host."""

    def __init__(self, tree: DraftTree) -> None:
        rows = np.arange(tree.num_rows)
        self.token_ids = torch.from_numpy(tree.token_ids.astype(np.int64))
        self.depths = torch.from_numpy(tree.depths.astype(np.int64))
        self.visible = torch.from_numpy((rows[None] <= rows[:, None]) & (rows[:, None] < end_rows(tree.depths)[None]))
        self._children: list[dict[int, int]] = [{} for _ in rows]
        for row, parent in enumerate(parents(tree.depths).tolist()):
            if parent >= 0:
                self._children[parent][int(tree.token_ids[row])] = row

    def walk(self, choices: Sequence[int]) -> list[int]:
        """Accepted rows, the root first."""
        path = [0]
        while (child := self._children[path[-1]].get(choices[path[-1]])) is not None:
            path.append(child)
        return path


def random_cache(pair: RandomPair, num_layers: int, batch: int, context: int) -> DynamicCache:
    cache = DynamicCache()
    shape = (batch, pair.shape.num_kv_heads, context, pair.shape.head_dim)
    for layer_idx in range(num_layers):
        key, value = (torch.randn(shape, dtype=pair.dtype, device=pair.device) for _ in range(2))
        cache.update(key, value, layer_idx)
    return cache


def compact(cache: DynamicCache, start: int, kept: Tensor) -> None:
    """Of the rows from `start` on, only `kept [batch, n]` (counted from there) stay, in this order."""
    index = kept[:, None, :, None]
    end = start + kept.shape[1]
    layer: Any
    for layer in cache.layers:
        for rows in (layer.keys, layer.values):
            rows[:, :, start:end] = rows[:, :, start:].take_along_dim(index, 2)
    crop(cache, end)


def crop(cache: DynamicCache, length: int) -> None:
    """By hand: what the argument of the cache's own `crop` means differs between versions of transformers."""
    layer: Any
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
