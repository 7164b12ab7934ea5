"""Drafting and context on a device: as `DevicePass`, no kernel waits for the host.

```
blocks     roots, lengths, tables, sampling, ranking ─ one copy ─► forward → rank ─ one copy ─► candidates
features   of many sequences' chunks ─ one copy ─► keys and values of every layer → pages
```
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dflash_core.attention.batch import RaggedBatch, RowGroup
from dflash_core.attention.split_kv.attention import attend
from dflash_core.attention.split_kv.device_batch import BatchSize, DeviceBatch, batch_arrays, fill_batch
from dflash_core.attention.split_kv.work_list import GridSize, HeadShape, WorkList, make_work_list
from dflash_core.cache.pools import KvPool, Slots
from dflash_core.cache.store import store_rows
from dflash_core.contracts import TokenIds
from dflash_core.models.drafter import DFlashDrafter
from dflash_core.models.drafter_config import LayerAttention
from dflash_core.models.shared_tensors import EmbeddingAndHead
from dflash_core.runners.captured import CapturedSteps, compile_step, mark_dynamic, padded_count, padded_counts
from dflash_core.runners.device_result import PinnedResult
from dflash_core.runners.draft_pass import BlockRows
from dflash_core.runners.settings import DrafterSettings
from dflash_core.runners.stages import StageClock
from dflash_core.sampling.arrays import RANKING_ARRAYS, SAMPLING_ARRAYS, fill_ranking, fill_sampling
from dflash_core.sampling.device.rank import rank_candidates_op
from dflash_core.staged_arrays import ArraySpec, StagedArrays

MAX_CONTEXT_ROWS = 1024
"""Tokens whose features are taken in together; more go in several steps."""


@dataclass(frozen=True, slots=True)
class BlockStep:
    """Attention of one draft forward, as `dflash_core.models.drafter.Attend`."""

    work: WorkList  # where every row of a block sees every other
    causal_work: WorkList  # where it sees the earlier ones
    layers: tuple[LayerAttention, ...]
    pages: Tensor  # [num_layers, 2, num_blocks, kv_block_size, num_kv_heads, head_dim]
    scale: float

    def __call__(self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        layer = self.layers[layer_idx]
        work = self.causal_work if layer.is_causal else self.work
        window = layer.sliding_window
        return attend(query, key, value, self.pages[layer_idx], work, scale=self.scale, sliding_window=window)


class DeviceDraftPass:
    """Implements `DraftPass`."""

    def __init__(
        self,
        model: DFlashDrafter,
        shared: EmbeddingAndHead,
        pool: KvPool,
        settings: DrafterSettings,
        vocab_size: int,
        num_candidates: int,
        max_table: int,
    ) -> None:
        """`vocab_size` is without padding, `max_table` the most context blocks of one sequence.

        Captures no graph yet: `prepare` does.
        """
        self._model = model
        self._shared = shared
        self._pool = pool
        self._settings = settings
        self._vocab_size = vocab_size
        self._num_candidates = num_candidates
        config = model.config
        self._device = model.fc.weight.device
        self._heads = HeadShape(config.num_heads, config.num_kv_heads, config.head_dim, model.fc.weight.dtype)
        self._max_table = max_table
        most = _padded_blocks(settings.max_batch_blocks)
        self._inputs = StagedArrays(self._arrays(most), self._device)
        self._chain = torch.arange(most * config.draft_block_size, dtype=torch.int32, device=self._device)
        self._result = PinnedResult(most * config.depth * 2 * num_candidates * 4, self._device)
        self._found = (most * config.depth, 2, num_candidates)
        self._forward = compile_step(self._run_model) if settings.compile else self._run_model
        self._steps = CapturedSteps(self._launch, self._device)

    def prepare(self) -> None:
        """Launches every padded number of blocks once, or captures its graph. Raises as `CapturedSteps.prepare`."""
        if self._device.type != "cuda":
            return
        for array in self._inputs.host.values():
            array.fill(0)
        self._inputs.send()
        sizes = _block_counts(self._settings.max_batch_blocks)
        self._steps.prepare(sizes, "the drafter", with_graphs=self._settings.cuda_graphs)

    def run(self, blocks: BlockRows, clock: StageClock) -> tuple[TokenIds, npt.NDArray[np.float32]]:
        size = _padded_blocks(blocks.num_blocks)
        self._fill(blocks, size)
        self._inputs.send(blocks.num_blocks)
        clock.lap("inputs")
        self._steps.run(size)
        num_rows = blocks.num_blocks * self._model.config.depth
        self._result.fetch(num_rows * 2 * self._num_candidates * 4)
        clock.lap("launch")
        self._result.wait()
        clock.lap("device")
        found = self._result.host.view(torch.int32).view(self._found)[:num_rows].clone()
        shape = (blocks.num_blocks, self._model.config.depth, self._num_candidates)
        ids, scores = found[:, 0].numpy().reshape(shape), found[:, 1].view(torch.float32).numpy().reshape(shape)
        return ids, scores

    def _arrays(self, num_blocks: int) -> dict[str, ArraySpec]:
        sampled = num_blocks * self._model.config.depth
        of_rows = {name: ArraySpec((sampled,), dtype) for name, dtype in (SAMPLING_ARRAYS | RANKING_ARRAYS).items()}
        return {"root_tokens": ArraySpec((num_blocks,)), **of_rows, **batch_arrays(self._batch_size(num_blocks))}

    def _batch_size(self, num_blocks: int) -> BatchSize:
        return BatchSize(num_blocks * self._model.config.draft_block_size, num_blocks, self._max_table)

    def _fill(self, blocks: BlockRows, size: int) -> None:
        config, host = self._model.config, self._inputs.host
        groups = [
            RowGroup.bidirectional(config.draft_block_size, context_len, table)
            for context_len, table in zip(blocks.context_lens.tolist(), blocks.block_tables, strict=True)
        ]
        fill_batch(self._inputs, RaggedBatch.pack(groups, self._settings.kv_block_size), self._batch_size(size))
        host["root_tokens"][: blocks.num_blocks] = blocks.root_tokens
        host["root_tokens"][blocks.num_blocks : size] = 0
        fill_sampling(host, blocks.sampling, size * config.depth)
        fill_ranking(host, blocks.ranking, size * config.depth)

    def _launch(self, size: int) -> None:
        """Everything that the device does. Nothing in here reads from it or depends on what it holds."""
        config, settings, inputs = self._model.config, self._settings, self._inputs.device
        batch = DeviceBatch.view(self._inputs, self._batch_size(size))
        grid = GridSize.of(
            self._heads, batch.num_rows, size, config.draft_block_size, is_causal=False, device=self._device
        )
        work = make_work_list(batch, self._heads, grid)
        causal_grid = replace(grid, is_causal=True)
        causal = replace(
            work,
            batch=replace(batch, first_row=self._chain[: batch.num_rows]),
            grid=causal_grid,
            grid_numbers=causal_grid.numbers,
        )
        step = BlockStep(work, causal, config.layers, self._pool.pages, config.head_dim**-0.5)
        root_tokens, positions = inputs["root_tokens"][:size], batch.positions.view(size, config.draft_block_size)
        if settings.compile:
            own = [x for x in work.tensors if x is not work.header]
            mark_dynamic([root_tokens, positions, causal.batch.first_row, *own])
        logits = self._forward(root_tokens, positions, step)
        of_rows = (inputs[name][: size * config.depth] for name in (*SAMPLING_ARRAYS, *RANKING_ARRAYS))
        ids, scores = rank_candidates_op(logits, *of_rows, self._vocab_size, self._num_candidates, settings.sharpness)
        found = self._result.device.view(torch.int32).view(self._found)[: len(ids)]
        found[:, 0].copy_(ids)
        found[:, 1].copy_(scores.view(torch.int32))

    def _run_model(self, root_tokens: Tensor, positions: Tensor, step: BlockStep) -> Tensor:
        """Logits `[num_blocks · depth, vocab_size with padding]` of slots 1 … of every block, whose `positions` are
        `[num_blocks, draft_block_size]`."""
        config = self._model.config
        masks = root_tokens.new_full((len(root_tokens), config.depth), config.mask_token_id)
        token_ids = torch.cat([root_tokens.unsqueeze(1), masks], dim=1)
        hidden = self._model(self._shared.embed(token_ids.flatten()), positions.flatten().long(), step)
        slots = hidden.view(len(root_tokens), config.draft_block_size, -1)[:, 1:]
        return self._shared.logits(slots.flatten(0, 1))


class DeviceContextWriter:
    """Implements `ContextWriter`."""

    def __init__(self, model: DFlashDrafter, pool: KvPool, settings: DrafterSettings) -> None:
        self._model = model
        self._pool = pool
        self._settings = settings
        weight = model.fc.weight
        self._device, self._dtype = weight.device, weight.dtype
        hidden_size = model.config.hidden_size
        names = ("positions", "slots")
        self._inputs = StagedArrays({name: ArraySpec((MAX_CONTEXT_ROWS,)) for name in names}, self._device)
        is_pinned = self._device.type == "cuda"
        self._staging = torch.zeros(MAX_CONTEXT_ROWS, hidden_size, dtype=self._dtype, pin_memory=is_pinned)
        self._features = torch.zeros(MAX_CONTEXT_ROWS, hidden_size, dtype=self._dtype, device=self._device)
        self._nowhere = torch.full((MAX_CONTEXT_ROWS,), -1, dtype=torch.int32, device=self._device)
        self._sent = torch.cuda.Event() if is_pinned else None  # type: ignore[no-untyped-call]
        self._context_kv = compile_step(model.context_kv) if settings.compile else model.context_kv
        self._steps = CapturedSteps(self._launch, self._device)

    def prepare(self) -> None:
        """Launches every padded number of tokens once, or captures its graph. Raises as `CapturedSteps.prepare`."""
        if self._device.type != "cuda":
            return
        self._inputs.host["slots"].fill(-1)
        self._inputs.send()
        sizes = padded_counts(MAX_CONTEXT_ROWS)
        self._steps.prepare(sizes, "the drafter's context", with_graphs=self._settings.cuda_graphs)

    def write(self, features: Tensor, positions: npt.NDArray[np.int64], slots: Slots) -> None:
        for start in range(0, len(features), MAX_CONTEXT_ROWS):
            part = slice(start, start + MAX_CONTEXT_ROWS)
            self._write(features[part], positions[part], slots[part])

    def _write(self, features: Tensor, positions: npt.NDArray[np.int64], slots: Slots) -> None:
        num_tokens, size = len(features), padded_count(len(features))
        if self._sent is not None:
            self._sent.synchronize()  # what was sent last may still be on its way out of the staging memory
        self._staging[:num_tokens].copy_(features)
        host = self._inputs.host
        host["positions"][:num_tokens], host["slots"][:num_tokens] = positions, slots
        host["positions"][num_tokens:size], host["slots"][num_tokens:size] = 0, -1
        self._inputs.send()
        self._features[:num_tokens].copy_(self._staging[:num_tokens], non_blocking=True)
        if self._sent is not None:
            self._sent.record()
        self._steps.run(size)

    def _launch(self, size: int) -> None:
        positions, slots = (self._inputs.device[name][:size] for name in ("positions", "slots"))
        features, nowhere = self._features[:size], self._nowhere[:size]
        if self._settings.compile:
            mark_dynamic([features, positions])
        for layer_idx, (key, value) in enumerate(self._context_kv(features, positions)):
            store_rows(key, value, self._pool.pages[layer_idx], self._pool.staging[layer_idx], slots, nowhere)


def _padded_blocks(num_blocks: int) -> int:
    """At least two: a compiler would treat one as a size of its own."""
    return next((size for size in (2, 4) if num_blocks <= size), -(-num_blocks // 8) * 8)


def _block_counts(largest: int) -> Iterator[int]:
    yield from sorted({_padded_blocks(count) for count in range(1, largest + 1)}, reverse=True)
