"""`DevicePass`: a pass that never waits for the host between its first kernel and its last.

```
host    fill arrays ─ one copy ─►┐                                            ┌─► choices, walk, features
device                           └ work list → forward → choose → walk →      │
                                   commit → features ──────────────── one copy ┘
```

Everything lies at fixed addresses and has a padded size, so that CUDA graphs can replay it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dflash_core.attention.split_kv.device_batch import BatchSize, DeviceBatch, batch_arrays, fill_batch
from dflash_core.attention.split_kv.step import DeviceStep
from dflash_core.attention.split_kv.tiles import tile_rows
from dflash_core.attention.split_kv.work_list import GridSize, HeadShape, make_work_list
from dflash_core.cache.commit import commit_rows
from dflash_core.cache.store import scatter_rows
from dflash_core.models.target import TargetModel
from dflash_core.parallel.share import RankShare
from dflash_core.runners.captured import CapturedSteps, compile_step, mark_dynamic, padded_count, padded_counts
from dflash_core.runners.device_result import DeviceResult
from dflash_core.runners.settings import TargetSettings
from dflash_core.runners.stages import StageClock
from dflash_core.runners.target_pack import PackedRows
from dflash_core.runners.target_pass import PassResult, RowFeatures, TargetCaches
from dflash_core.sampling.arrays import SAMPLING_ARRAYS, SamplingArrays, fill_sampling
from dflash_core.sampling.device.choose import choose_tokens_op
from dflash_core.sampling.rows import SamplingRows
from dflash_core.staged_arrays import ArraySpec, StagedArrays
from dflash_core.trees.walk_triton import walk_trees

logger = logging.getLogger(__name__)

_NOWHERE = ("slots", "page_slots", "staged_rows", "parents")  # what is −1 in a padding row

_SMALL_TILE = 64
"""Rows × query heads per KV head: a pass whose sequences all stay below has smaller attention tiles."""


@dataclass(frozen=True, slots=True)
class PassSize:
    """What one graph can serve."""

    num_rows: int
    num_choices: int
    max_rows: int  # in-flight rows of one sequence


class DevicePass:
    """Implements `TargetPass`."""

    def __init__(
        self,
        model: TargetModel,
        caches: TargetCaches,
        settings: TargetSettings,
        vocab_size: int,
        max_model_len: int,
        share: RankShare | None = None,
    ) -> None:
        """`vocab_size` is without padding; `share` is that of the model that this rank holds, None: all of it. Captures
        no graph yet: `prepare` does. A share is never captured: what ranks exchange depends on the round's sampling.
        """
        self._model = model
        self._caches = caches
        self._settings = settings
        self._vocab_size = vocab_size
        self._share = share
        self._device = model.device
        self._heads = HeadShape(model.num_heads, model.kv_shape.num_kv_heads, model.kv_shape.head_dim, model.dtype)
        self._max_blocks = -(-max_model_len // settings.kv_block_size)
        max_rows = padded_count(settings.max_rows)
        self._inputs = StagedArrays(_arrays(BatchSize(max_rows, max_rows, self._max_blocks)), self._device)
        hidden_size = model.hidden_size if caches.features is not None else 0
        self._result = DeviceResult(max_rows, hidden_size, model.dtype, self._device)
        obstacle = model.capture_obstacle
        if obstacle is not None and (settings.compile or settings.cuda_graphs):
            logger.warning("%s runs without torch.compile and CUDA graphs: %s", model.name, obstacle)
        self._is_compiled = settings.compile and obstacle is None
        can_capture = obstacle is None and share is None and self._device.type == "cuda"
        self._is_captured = settings.cuda_graphs and can_capture
        self._forward = compile_step(self._run_model) if self._is_compiled else self._run_model
        self._steps = CapturedSteps(self._launch, self._device)

    @property
    def row_sizes(self) -> tuple[int, ...]:
        return tuple(reversed(padded_counts(self._settings.max_rows)))

    def run(self, rows: PackedRows, clock: StageClock) -> PassResult:
        size = self._size_of(rows)
        self._fill(rows, size)
        self._inputs.send(rows.batch.num_sequences)
        clock.lap("inputs")
        self._steps.run(size)
        has_features = self._caches.features is not None and rows.wants_features
        self._result.fetch(size.num_rows if has_features else 0)
        clock.lap("launch")
        self._result.wait()
        clock.lap("device")
        choices = self._result.choices[: rows.num_choices].copy()
        accepted = self._result.accepted[rows.num_prefill_rows : rows.num_rows].astype(np.bool_)
        features = RowFeatures(self._result.features[: rows.num_rows]) if has_features else None
        return PassResult(choices, accepted, features)

    def prepare(self) -> None:
        """Launches every padded size once, and captures those up to `max_graph_rows`.

        Raises as `CapturedSteps.prepare`.
        """
        if self._device.type != "cuda":
            return
        for name, array in self._inputs.host.items():
            array.fill(-1 if name in _NOWHERE else 0)
        self._inputs.send()
        name = f"target {self._model.name}"
        self._steps.prepare(self._large_sizes(), name, with_graphs=False)
        self._steps.prepare(self._graph_sizes(), name, with_graphs=self._is_captured)

    def _large_sizes(self) -> Iterator[PassSize]:
        """The largest round of each kind of kernel: with as many choices as it can have, and with few."""
        largest = padded_count(self._settings.max_rows)
        for num_choices in (padded_count(self._settings.max_tree_rows), padded_count(1)):
            for max_rows in {self._few_rows(largest), largest}:
                yield PassSize(largest, num_choices, max_rows)

    def _graph_sizes(self) -> Iterator[PassSize]:
        for count in padded_counts(min(self._settings.max_graph_rows, self._settings.max_rows)):
            for max_rows in sorted({self._few_rows(count), count}, reverse=True):
                yield PassSize(count, count, max_rows)

    def _few_rows(self, num_rows: int) -> int:
        """In-flight rows of a sequence up to which a pass of `num_rows` has smaller attention tiles; `num_rows` where
        they would not be smaller."""
        heads, few = self._heads, min(num_rows, max(1, _SMALL_TILE // self._heads.group_size))
        tiles = (tile_rows(rows, heads.group_size, heads.head_dim, heads.dtype) for rows in (few, num_rows))
        return num_rows if next(tiles) == next(tiles) else few

    def _size_of(self, rows: PackedRows) -> PassSize:
        """Beyond the graphs logits are computed for the choices alone: prefill rows need none."""
        num_rows = padded_count(rows.num_rows)
        few = self._few_rows(num_rows)
        has_graph = num_rows <= padded_count(self._settings.max_graph_rows)
        return PassSize(
            num_rows,
            num_rows if has_graph else padded_count(max(1, rows.num_choices)),
            few if int(np.diff(rows.batch.cu_rows).max()) <= few else num_rows,
        )

    def _batch_size(self, size: PassSize) -> BatchSize:
        return BatchSize(size.num_rows, size.num_rows, self._max_blocks)

    def _fill(self, rows: PackedRows, size: PassSize) -> None:
        fill_batch(self._inputs, rows.batch, self._batch_size(size))
        host, num_rows, split = self._inputs.host, rows.num_rows, rows.num_prefill_rows
        num_choices = rows.num_choices
        tree_choices = np.arange(rows.num_last_chunks, num_choices)
        for name, prefill_value, tree_values, padding in (
            ("page_slots", rows.prefill_slots, -1, -1),
            ("staged_rows", -1, np.arange(num_rows - split), -1),
            ("parents", -1, np.where(rows.tree_parents >= 0, rows.tree_parents + split, -1), -1),
            ("choice_of_row", 0, tree_choices, 0),
        ):
            host[name][:split] = prefill_value
            host[name][split:num_rows] = tree_values
            host[name][num_rows : size.num_rows] = padding
        for name, values, padding in (("token_ids", rows.token_ids, 0), ("slots", rows.slots, -1)):
            host[name][:num_rows] = values
            host[name][num_rows : size.num_rows] = padding
        host["first_tree_row"][0] = split
        host["logit_rows"][:num_choices] = rows.logit_rows
        host["logit_rows"][num_choices : size.num_choices] = 0
        fill_sampling(host, rows.sampling, size.num_choices)

    def _launch(self, size: PassSize) -> None:
        """Everything that the device does. Nothing in here reads from it or depends on what it holds."""
        inputs, caches = self._inputs.device, self._caches
        batch = DeviceBatch.view(self._inputs, self._batch_size(size))
        grid = GridSize.of(self._heads, size.num_rows, size.num_rows, size.max_rows, True, self._device)
        work = make_work_list(batch, self._heads, grid)
        token_ids, parents, choice_of_row, slots, page_slots, staged_rows = (
            inputs[name][: size.num_rows]
            for name in ("token_ids", "parents", "choice_of_row", "slots", "page_slots", "staged_rows")
        )
        step = DeviceStep(work, caches.kv.pages, caches.kv.staging, page_slots, staged_rows)
        logit_rows = inputs["logit_rows"][: size.num_choices]
        if self._is_compiled:
            mark_dynamic(
                [token_ids, logit_rows, page_slots, staged_rows, *(x for x in work.tensors if x is not work.header)]
            )
        logits, features = self._forward(token_ids, batch.positions, step, logit_rows)
        choices = self._choose(logits, size.num_choices)
        accepted, committed_slots, tree_slots = walk_trees(
            token_ids,
            parents,
            batch.end_row,
            choice_of_row,
            choices,
            slots,
            staged_rows,
            inputs["first_tree_row"],
            self._settings.max_tree_rows,
        )
        commit_rows(caches.kv.staging, caches.kv.slots, staged_rows, tree_slots)
        if features is not None and caches.features is not None:
            scatter_rows(features, committed_slots, caches.features.slots)
        self._result.put(choices, accepted, features)

    def _choose(self, logits: Tensor, num_choices: int) -> Tensor:
        sampling = [self._inputs.device[name][:num_choices] for name in SAMPLING_ARRAYS]
        if self._share is None:
            chosen: Tensor = choose_tokens_op(logits, *sampling, self._vocab_size)
            return chosen
        host = SamplingArrays(*(self._inputs.host[name][:num_choices] for name in SAMPLING_ARRAYS))
        return self._share.choose(logits, SamplingRows(*sampling), host)

    def _run_model(
        self, token_ids: Tensor, positions: Tensor, step: DeviceStep, logit_rows: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Logits `[num_choices, vocab_size]`, features `[num_rows, hidden]`."""
        output = self._model.forward(token_ids.long(), positions.long(), step, logit_rows.long())
        projection = self._caches.projection
        features = None if projection is None else projection.project_context(output.features_of(slice(None)))
        return output.logits, features


def _arrays(size: BatchSize) -> dict[str, ArraySpec]:
    rows = size.num_rows
    names = ("token_ids", "parents", "choice_of_row", "slots", "page_slots", "staged_rows", "logit_rows")
    sampling = {name: ArraySpec((rows,), dtype) for name, dtype in SAMPLING_ARRAYS.items()}
    own = {"first_tree_row": ArraySpec((1,)), **{name: ArraySpec((rows,)) for name in names}}
    return {**own, **sampling, **batch_arrays(size)}
