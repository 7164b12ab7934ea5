"""`DrafterRunner`: holds sequences' context and drafts blocks after their roots. Synchronous, for one thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dflash_core.attention.backend import AttentionBackend, picks_triton
from dflash_core.contracts import (
    ContextAck,
    ContextChunk,
    DraftBlock,
    DrafterInfo,
    DraftRanking,
    PackedDrafts,
    SamplingParams,
    SequenceKey,
)
from dflash_core.contracts.packed import joined
from dflash_core.errors import ProtocolError
from dflash_core.models.checkpoints import TargetConfig, check_pair, resolve_checkpoint
from dflash_core.models.cpu_drafter import fuse_drafter
from dflash_core.models.drafter import DFlashDrafter
from dflash_core.models.drafter_config import DrafterConfig
from dflash_core.models.fused_layers import fuse_drafter_products
from dflash_core.models.shared_tensors import EmbeddingAndHead, fc_fingerprint
from dflash_core.models.target_loading import tokenizer_size
from dflash_core.raw_tensor import from_raw, to_raw
from dflash_core.runners.devices import named_device_errors, pick_device, pick_dtype, set_up_process
from dflash_core.runners.draft_pass import BlockRows, ContextWriter, DraftPass
from dflash_core.runners.draft_timing import time_drafts
from dflash_core.runners.drafter_context import DrafterContext, NewContext, size_context
from dflash_core.runners.drafter_loading import load_drafter_parts
from dflash_core.runners.host_draft import HostContextWriter, HostDraftPass
from dflash_core.runners.settings import DrafterSettings
from dflash_core.runners.stages import StageClock


class _Refusal(NamedTuple):
    """Why a block was not drafted, as `Draft` says it."""

    missing_from: int | None = None
    error: str | None = None


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
        self._is_on_device = picks_triton(AttentionBackend(settings.attention), self._device)
        (fuse_drafter_products if self._is_on_device else fuse_drafter)(model)
        self.memory = size_context(info.model, model, shared, settings)
        self._context = DrafterContext(model, self.memory.num_blocks, settings.kv_block_size)
        self._pass, self._writer = self._make_passes()

    def _make_passes(self) -> tuple[DraftPass, ContextWriter]:
        model, pool, settings = self._model, self._context.pool, self._settings
        sizes = (self.info.vocab_size, self.info.num_candidates)
        if not self._is_on_device:
            shared = self._shared.packed_for_cpu()
            return HostDraftPass(model, shared, pool, settings, *sizes), HostContextWriter(model, pool)
        # Here, because Triton exists on Linux only and takes a second to import.
        from dflash_core.runners.device_draft import DeviceContextWriter, DeviceDraftPass

        longest = -(-model.config.max_position_embeddings // settings.kv_block_size)
        max_table = min(self.memory.num_blocks, longest)
        draft_pass = DeviceDraftPass(model, self._shared, pool, settings, *sizes, max_table)
        return draft_pass, DeviceContextWriter(model, pool, settings)

    @classmethod
    def load(cls, drafter: str, target: str, settings: DrafterSettings) -> DrafterRunner:
        """Loads the drafter, and of its target the embedding and head alone; drafts once, to be warm, and then
        times itself.

        Sets torch's thread count and switches TF32 off, for the whole process.
        Raises `CheckpointNotFound`, `CheckpointMismatch`, `UnsupportedModel`, `InvalidSettings`.
        """
        folder, target_folder = resolve_checkpoint(drafter), resolve_checkpoint(target)
        config, target_config = DrafterConfig.load(folder), TargetConfig.load(target_folder)
        check_pair(target_config, config)
        device = pick_device(settings.device)
        dtype = pick_dtype(settings.dtype, device)
        set_up_process(settings.num_threads)
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
        runner.info = replace(info, draft_times_us=time_drafts(runner, settings.max_batch_blocks))
        return runner

    @property
    def kv_block_size(self) -> int:
        return self._context.kv_block_size

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
    def append_context(self, chunks: Sequence[ContextChunk]) -> list[ContextAck]:
        """Takes what is new of the chunks, all of them together, in their order.

        Raises `ProtocolError` for features of a wrong form, nothing is taken then; `DeviceLost` where the GPU is of no
        use any more.
        """
        with named_device_errors(f"drafter {self.info.model}"):
            return self._append_context(chunks)

    def _append_context(self, chunks: Sequence[ContextChunk]) -> list[ContextAck]:
        received = [self._features_of(chunk) for chunk in chunks]
        acks: list[ContextAck] = []
        fresh: list[tuple[Tensor, NewContext]] = []
        for chunk, features in zip(chunks, received, strict=True):
            status, new = self._context.append(chunk.key, chunk.start, len(features))
            if new is not None:
                fresh.append((features[new.num_known :], new))
            acks.append(ContextAck(chunk.key, status, self.context_len(chunk.key) or 0))
        if fresh:
            positions, slots = (np.concatenate([getattr(n, name) for _, n in fresh]) for name in ("positions", "slots"))
            self._writer.write(torch.cat([features for features, _ in fresh]), positions, slots)
        return acks

    def _features_of(self, chunk: ContextChunk) -> Tensor:
        shape = chunk.features.shape
        if len(shape) != 2 or shape[1] != self.info.hidden_size or chunk.start < 0:
            raise ProtocolError(
                f"context features must be [num_tokens, {self.info.hidden_size}] from a position ≥ 0, got"
                f" {list(shape)} from {chunk.start}"
            )
        return from_raw(chunk.features).to(self._model.fc.weight.dtype)

    @torch.inference_mode()
    def draft(self, blocks: Sequence[DraftBlock]) -> PackedDrafts:
        """Drafts in the order of `blocks`; a block that cannot be drafted says why and disturbs no other.

        Raises `DeviceLost` where the GPU is of no use any more.
        """
        with named_device_errors(f"drafter {self.info.model}"):
            return self._draft(tuple(blocks))

    def _draft(self, blocks: tuple[DraftBlock, ...]) -> PackedDrafts:
        clock = StageClock()
        refusals = {place: refusal for place, block in enumerate(blocks) if (refusal := self._refusal(block))}
        ready = [block for place, block in enumerate(blocks) if place not in refusals]
        most = self._settings.max_batch_blocks
        found = [self._pass.run(self._rows(ready[at : at + most]), clock) for at in range(0, len(ready), most)]
        self.stage_times_us = clock.times_us
        return PackedDrafts(
            keys=[block.key for block in blocks],
            context_lens=[block.context_len for block in blocks],
            depths=[0 if place in refusals else self._model.config.depth for place in range(len(blocks))],
            num_candidates=[self.info.num_candidates] * len(blocks),
            token_ids=joined([ids for ids, _ in found], np.int32),
            scores=joined([scores for _, scores in found], np.float32),
            missing_from={
                place: refusal.missing_from for place, refusal in refusals.items() if refusal.missing_from is not None
            },
            errors={place: refusal.error for place, refusal in refusals.items() if refusal.error is not None},
        )

    def _rows(self, blocks: Sequence[DraftBlock]) -> BlockRows:
        return BlockRows.of(
            [block.root_token for block in blocks],
            [block.context_len for block in blocks],
            [self._context.block_table(block.key) for block in blocks],
            [block.sampling for block in blocks],
            [self._ranking(block) for block in blocks],
            self._model.config.depth,
        )

    def _ranking(self, block: DraftBlock) -> DraftRanking:
        """As the block asks, without noise where the settings switch it off for all."""
        return block.ranking if self._settings.shared_noise else replace(block.ranking, uses_noise=False)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Drafts after a context of one token, and forgets it: compiles what is compiled on first use, and on a GPU
        captures every graph. Raises `UnsupportedModel` where that cannot be done."""
        key = SequenceKey("warm-up", 0)
        self.open(key, 0)
        self.append_context([ContextChunk(key, 0, to_raw(torch.zeros(1, self.info.hidden_size)))])
        self.draft([DraftBlock(key, 0, 1, SamplingParams(temperature=1.0, top_p=0.9))])
        self.release(key)
        self._pass.prepare()
        self._writer.prepare()

    def _refusal(self, block: DraftBlock) -> _Refusal | None:
        """Why a block cannot be drafted; None where it can."""
        held = self._context.find(block.key)
        if held is None:
            fault = "a higher attempt is here" if self._context.is_stale(block.key) else "not open on this drafter"
            return _Refusal(error=f"sequence {block.key.sequence_id}: {fault}")
        # An id of the padding is embedded like any other, but no target chooses it.
        if not 0 <= block.root_token < self.info.vocab_size:
            return _Refusal(error=f"root token {block.root_token} is outside the vocabulary of {self.info.vocab_size}")
        longest = self._model.config.max_position_embeddings
        if not 0 <= block.context_len < longest:
            return _Refusal(error=f"context_len {block.context_len} is outside the drafter's {longest} positions")
        if block.context_len <= held.context_len:
            return None
        if held.out_of_blocks is not None:
            return _Refusal(error=held.out_of_blocks)
        return _Refusal(missing_from=held.context_len)
