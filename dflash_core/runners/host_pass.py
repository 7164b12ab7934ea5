"""`HostPass`: the steps of a pass one after another, with torch's own attention; what runs on the CPU."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dflash_core.attention.registration import PagedStep
from dflash_core.models.target import TargetModel, TargetOutput
from dflash_core.parallel.share import RankShare
from dflash_core.runners.stages import StageClock
from dflash_core.runners.target_pack import PackedRows
from dflash_core.runners.target_pass import PassResult, RowFeatures, TargetCaches
from dflash_core.sampling.choose import choose_tokens
from dflash_core.sampling.rows import SamplingRows
from dflash_core.trees.walk import accepted_rows


class HostPass:
    """Implements `TargetPass`."""

    def __init__(
        self, model: TargetModel, caches: TargetCaches, vocab_size: int, share: RankShare | None = None
    ) -> None:
        """`vocab_size` is without padding; `share` is that of the model that this rank holds, None: all of it."""
        self._model = model
        self._caches = caches
        self._vocab_size = vocab_size
        self._share = share

    @property
    def row_sizes(self) -> tuple[int, ...]:
        return ()

    def prepare(self) -> None:
        """The first pass has compiled what is compiled."""

    def run(self, rows: PackedRows, clock: StageClock) -> PassResult:
        output = self._forward(rows)
        clock.lap("forward")
        choices: npt.NDArray[np.int64] = self._choose(output.logits, rows).cpu().numpy()
        clock.lap("sample")
        tree_choices = choices[rows.num_last_chunks :]
        accepted = accepted_rows(rows.tree_token_ids, rows.tree_parents, rows.tree_end_rows, tree_choices)
        clock.lap("walk")
        tree_rows = np.flatnonzero(accepted & (rows.tree_slots >= 0))
        if len(tree_rows):
            self._caches.kv.commit(self._to_device(tree_rows), self._to_device(rows.tree_slots[tree_rows]))
        committed = np.concatenate([np.arange(rows.num_prefill_rows), tree_rows + rows.num_prefill_rows])
        features = self._features(output, rows, committed)
        clock.lap("commit")
        return PassResult(choices, accepted, features)

    def _choose(self, logits: Tensor, rows: PackedRows) -> Tensor:
        sampling = SamplingRows.on(rows.sampling, self._model.device)
        if self._share is None:
            return choose_tokens(logits, sampling, self._vocab_size)
        return self._share.choose(logits, sampling, rows.sampling)

    def _forward(self, rows: PackedRows) -> TargetOutput:
        """Keys and values go to pages or to the staging buffer."""
        prefill_slots = self._to_device(rows.prefill_slots)
        step = PagedStep(rows.batch, self._caches.kv, rows.num_prefill_rows, prefill_slots)
        token_ids, positions = (self._to_device(x.astype(np.int64)) for x in (rows.token_ids, rows.batch.positions))
        return self._model.forward(token_ids, positions, step, self._to_device(rows.logit_rows))

    def _features(self, output: TargetOutput, rows: PackedRows, committed: npt.NDArray[np.int64]) -> RowFeatures | None:
        """Writes the features of committed rows to their pages."""
        caches = self._caches
        if caches.features is None or caches.projection is None:
            return None
        features = caches.projection.project_context(output.features_of(self._to_device(committed)))
        caches.features.write(self._to_device(rows.slots[committed]), features)
        places = np.zeros(rows.num_rows, np.int64)
        places[committed] = np.arange(len(committed))
        return RowFeatures(features.cpu().contiguous(), places)

    def _to_device(self, array: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self._model.device)
