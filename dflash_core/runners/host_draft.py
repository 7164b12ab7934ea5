"""Drafting and context on the host's own terms: one step after another, with torch's own attention."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dflash_core.attention import AttentionBackend, RaggedBatch, RowGroup, ragged_attention
from dflash_core.cache.pools import KvPool, Slots
from dflash_core.contracts import TokenIds
from dflash_core.models.drafter import DFlashDrafter
from dflash_core.models.shared_tensors import EmbeddingAndHead
from dflash_core.runners.draft_pass import BlockRows
from dflash_core.runners.settings import DrafterSettings
from dflash_core.runners.stages import StageClock
from dflash_core.sampling.candidates import rank_candidates
from dflash_core.sampling.rows import RankingRows, SamplingRows


class HostDraftPass:
    """Implements `DraftPass`."""

    def __init__(
        self,
        model: DFlashDrafter,
        shared: EmbeddingAndHead,
        pool: KvPool,
        settings: DrafterSettings,
        vocab_size: int,
        num_candidates: int,
    ) -> None:
        """`vocab_size` is without padding."""
        self._model = model
        self._shared = shared
        self._pool = pool
        self._settings = settings
        self._vocab_size = vocab_size
        self._num_candidates = num_candidates
        self._device = model.fc.weight.device
        self._scale = model.config.head_dim**-0.5

    def prepare(self) -> None:
        """The first pass has compiled what is compiled."""

    def run(self, blocks: BlockRows, clock: StageClock) -> tuple[TokenIds, npt.NDArray[np.float32]]:
        logits = self._forward(blocks)
        clock.lap("forward")
        ids, scores = rank_candidates(
            logits,
            SamplingRows.on(blocks.sampling, self._device),
            RankingRows.on(blocks.ranking, self._device),
            self._vocab_size,
            self._num_candidates,
            self._settings.sharpness,
        )
        shape = (blocks.num_blocks, self._model.config.depth, self._num_candidates)
        found = ids.cpu().numpy().reshape(shape), scores.cpu().numpy().reshape(shape)
        clock.lap("rank")
        return found

    def _forward(self, blocks: BlockRows) -> Tensor:
        """Logits `[num_blocks · depth, vocab_size with padding]` of slots 1 … of every block, in one forward."""
        config, size = self._model.config, self._model.config.draft_block_size
        token_ids = np.full((blocks.num_blocks, size), config.mask_token_id, np.int64)
        token_ids[:, 0] = blocks.root_tokens
        batches = {is_causal: self._pack(blocks, is_causal) for is_causal in {x.is_causal for x in config.layers}}
        positions = next(iter(batches.values())).positions.astype(np.int64)

        def attend(layer_idx: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            layer = config.layers[layer_idx]
            return ragged_attention(
                query,
                key,
                value,
                self._pool.layer(layer_idx),
                batches[layer.is_causal],
                scale=self._scale,
                sliding_window=layer.sliding_window,
                backend=AttentionBackend.TORCH,
            )

        embeds = self._shared.embed(torch.from_numpy(token_ids.reshape(-1)).to(self._device))
        hidden = self._model(embeds, torch.from_numpy(positions).to(self._device), attend)
        return self._shared.logits(hidden.view(blocks.num_blocks, size, -1)[:, 1:].flatten(0, 1))

    def _pack(self, blocks: BlockRows, is_causal: bool) -> RaggedBatch:
        """The blocks' rows over their context."""
        group = RowGroup.causal if is_causal else RowGroup.bidirectional
        size = self._model.config.draft_block_size
        groups = [
            group(size, context_len, table)
            for context_len, table in zip(blocks.context_lens.tolist(), blocks.block_tables, strict=True)
        ]
        return RaggedBatch.pack(groups, self._settings.kv_block_size, self._device)


class HostContextWriter:
    """Implements `ContextWriter`."""

    def __init__(self, model: DFlashDrafter, pool: KvPool) -> None:
        self._model = model
        self._pool = pool

    def prepare(self) -> None:
        """There is nothing to prepare."""

    def write(self, features: Tensor, positions: npt.NDArray[np.int64], slots: Slots) -> None:
        weight = self._model.fc.weight
        on_device = features.to(weight.device, weight.dtype)
        places, at = (torch.from_numpy(x).to(weight.device) for x in (slots, positions))
        for layer_idx, (key, value) in enumerate(self._model.context_kv(on_device, at)):
            self._pool.write(layer_idx, places, key, value)
