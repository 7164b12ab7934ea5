"""`DrafterRunner`: holds sequences' context and drafts blocks after their roots. Synchronous, for one thread."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dflash_core.attention import AttentionBackend, RaggedBatch, RowGroup, ragged_attention
from dflash_core.contracts import ContextAck, ContextChunk, Draft, DraftBlock, DrafterInfo, SamplingParams, SequenceKey
from dflash_core.errors import ProtocolError
from dflash_core.models.checkpoints import TargetConfig, check_pair, resolve_checkpoint
from dflash_core.models.drafter import DFlashDrafter
from dflash_core.models.drafter_config import DrafterConfig
from dflash_core.models.shared_tensors import EmbeddingAndHead, fc_fingerprint
from dflash_core.models.target_loading import tokenizer_size
from dflash_core.raw_tensor import from_raw, to_raw
from dflash_core.runners.devices import pick_device, pick_dtype
from dflash_core.runners.drafter_context import DrafterContext, size_context
from dflash_core.runners.drafter_loading import load_drafter_parts
from dflash_core.runners.settings import DrafterSettings
from dflash_core.runners.stages import StageClock
from dflash_core.sampling.candidates import rank_candidates
from dflash_core.sampling.rows import SamplingRows


class DrafterRunner:
    """A drafter with its target's embedding and head, and the context of many sequences."""

    def __init__(
        self,
        model: DFlashDrafter,
        shared: EmbeddingAndHead,
        settings: DrafterSettings,
        info: DrafterInfo,
    ) -> None:
        """`info.vocab_size` is without padding; `info.num_candidates` is how many are told per depth."""
        self.info = info
        self.stage_times_us: dict[str, int] = {}  # of the last `draft`
        self._model = model
        self._shared = shared
        self._settings = settings
        self._device = model.fc.weight.device
        self.memory = size_context(info.model, model, shared, settings)
        self._context = DrafterContext(model, self.memory.num_blocks, settings.kv_block_size)
        self._scale = model.config.head_dim**-0.5

    @classmethod
    def load(cls, drafter: str, target: str, settings: DrafterSettings) -> DrafterRunner:
        """Loads the drafter, and of its target the embedding and head alone; drafts once, to be warm.

        Sets torch's thread count and switches TF32 off, for the whole process.
        Raises `CheckpointNotFound`, `CheckpointMismatch`, `UnsupportedModel`, `InvalidSettings`.
        """
        folder, target_folder = resolve_checkpoint(drafter), resolve_checkpoint(target)
        config, target_config = DrafterConfig.load(folder), TargetConfig.load(target_folder)
        check_pair(target_config, config)
        device = pick_device(settings.device)
        dtype = pick_dtype(settings.dtype, device)
        torch.set_float32_matmul_precision("highest")
        if device.type == "cpu":
            torch.set_num_threads(settings.num_threads)
        vocab_size = tokenizer_size(target_folder, target_config.vocab_size)
        info = DrafterInfo(
            model=drafter,
            draft_block_size=config.draft_block_size,
            num_candidates=min(settings.num_candidates, vocab_size),
            hidden_size=config.hidden_size,
            vocab_size=vocab_size,
            num_target_layers=config.num_target_layers,
            fingerprint=fc_fingerprint(folder),
        )
        model, shared = load_drafter_parts(drafter, folder, target_folder, target_config, dtype, device)
        runner = cls(model, shared, settings, info)
        runner.memory.log()
        runner.warm_up()
        return runner

    @property
    def free_blocks(self) -> int:
        return self._context.free_blocks

    @property
    def num_sequences(self) -> int:
        return self._context.num_sequences

    def open(self, key: SequenceKey, context_len: int) -> None:
        """Announces a sequence. A higher attempt truncates its context to `context_len`; a lower one is dropped."""
        self._context.open(key, context_len)

    def context_len(self, key: SequenceKey) -> int | None:
        """Features held of this attempt; None where it is not open here."""
        held = self._context.find(key)
        return None if held is None else held.context_len

    def release(self, key: SequenceKey) -> None:
        self._context.release(key)

    def release_all(self) -> None:
        self._context.release_all()

    @torch.inference_mode()
    def append_context(self, chunk: ContextChunk) -> ContextAck:
        """Takes what is new of a chunk. Raises `ProtocolError` for features of a wrong form."""
        shape = chunk.features.shape
        if len(shape) != 2 or shape[1] != self.info.hidden_size or chunk.start < 0:
            raise ProtocolError(
                f"context features must be [num_tokens, {self.info.hidden_size}] from a position ≥ 0, got"
                f" {list(shape)} from {chunk.start}"
            )
        features = from_raw(chunk.features, self._device).to(self._model.fc.weight.dtype)
        status = self._context.append(chunk.key, chunk.start, features)
        return ContextAck(chunk.key, status, self.context_len(chunk.key) or 0)

    @torch.inference_mode()
    def draft(self, blocks: Sequence[DraftBlock]) -> list[Draft]:
        """Drafts in the order of `blocks`; a block that cannot be drafted says why and disturbs no other."""
        clock = StageClock()
        drafts = [self._refusal(block) for block in blocks]
        ready = [i for i, draft in enumerate(drafts) if draft is None]
        for first in range(0, len(ready), self._settings.max_batch_blocks):
            picked = ready[first : first + self._settings.max_batch_blocks]
            batch = [blocks[i] for i in picked]
            logits = self._forward(batch)
            clock.lap("forward")
            for i, draft in zip(picked, self._rank(batch, logits), strict=True):
                drafts[i] = draft
            clock.lap("rank")
        self.stage_times_us = clock.times_us
        return [draft for draft in drafts if draft is not None]

    def warm_up(self) -> None:
        """Drafts after a context of one token, and forgets it: compiles what is compiled on first use."""
        key = SequenceKey("warm-up", 0)
        self.open(key, 0)
        self.append_context(ContextChunk(key, 0, to_raw(torch.zeros(1, self.info.hidden_size))))
        self.draft([DraftBlock(key, 0, 1, SamplingParams(temperature=1.0, top_p=0.9))])
        self.release(key)

    def _refusal(self, block: DraftBlock) -> Draft | None:
        """Why a block cannot be drafted; None where it can."""
        held = self._context.find(block.key)
        if held is None:
            fault = "a higher attempt is here" if self._context.is_stale(block.key) else "not open on this drafter"
            return self._empty(block, error=f"sequence {block.key.sequence_id}: {fault}")
        # An id of the padding is embedded like any other, but no target chooses it.
        if not 0 <= block.root_token < self.info.vocab_size:
            return self._empty(
                block, error=f"root token {block.root_token} is outside the vocabulary of {self.info.vocab_size}"
            )
        if block.context_len < 0:
            return self._empty(block, error=f"context_len is {block.context_len}")
        if block.context_len <= held.context_len:
            return None
        if held.out_of_blocks is not None:
            return self._empty(block, error=held.out_of_blocks)
        return self._empty(block, missing_from=held.context_len)

    def _empty(self, block: DraftBlock, missing_from: int | None = None, error: str | None = None) -> Draft:
        num_candidates = self.info.num_candidates
        ids, scores = np.empty((0, num_candidates), np.int32), np.empty((0, num_candidates), np.float32)
        return Draft(block.key, block.context_len, ids, scores, missing_from, error)

    def _forward(self, blocks: Sequence[DraftBlock]) -> Tensor:
        """Logits `[num_blocks · depth, vocab_size with padding]` of slots 1 … of every block, in one pass."""
        config, size = self._model.config, self._model.config.draft_block_size
        token_ids = np.full((len(blocks), size), config.mask_token_id, np.int64)
        token_ids[:, 0] = [block.root_token for block in blocks]
        batches = {is_causal: self._pack(blocks, is_causal) for is_causal in {x.is_causal for x in config.layers}}
        positions = next(iter(batches.values())).positions.astype(np.int64)
        backend = AttentionBackend(self._settings.attention)

        def attend(layer_idx: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            layer = config.layers[layer_idx]
            return ragged_attention(
                query,
                key,
                value,
                self._context.pool.layer(layer_idx),
                batches[layer.is_causal],
                scale=self._scale,
                sliding_window=layer.sliding_window,
                backend=backend,
            )

        embeds = self._shared.embed(torch.from_numpy(token_ids.reshape(-1)).to(self._device))
        hidden = self._model(embeds, torch.from_numpy(positions).to(self._device), attend)
        return self._shared.logits(hidden.view(len(blocks), size, -1)[:, 1:].flatten(0, 1))

    def _pack(self, blocks: Sequence[DraftBlock], is_causal: bool) -> RaggedBatch:
        """The blocks' rows over their context."""
        group = RowGroup.causal if is_causal else RowGroup.bidirectional
        size = self._model.config.draft_block_size
        groups = [group(size, block.context_len, self._context.block_table(block.key)) for block in blocks]
        return RaggedBatch.pack(groups, self._context.kv_block_size, self._device)

    def _rank(self, blocks: Sequence[DraftBlock], logits: Tensor) -> list[Draft]:
        """The best candidates per depth: slot i's are for position context_len + i, whose noise ranks them."""
        settings, depth = self._settings, self._model.config.depth
        rows = [(block.sampling, block.context_len + i) for block in blocks for i in range(1, depth + 1)]
        ids, scores = rank_candidates(
            logits,
            SamplingRows.of(rows, self._device),
            self.info.vocab_size,
            self.info.num_candidates,
            settings.sharpness,
            settings.truncation_penalty,
            settings.shared_noise,
        )
        shape = (len(blocks), depth, self.info.num_candidates)
        packed = zip(blocks, ids.cpu().numpy().reshape(shape), scores.cpu().numpy().reshape(shape), strict=True)
        return [Draft(block.key, block.context_len, token_ids, score) for block, token_ids, score in packed]
