"""`TargetRunner`: one target model with its caches. A round is admit → forward → choose → walk → commit → features."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dflash_core.attention import AttentionBackend
from dflash_core.attention.registration import PagedStep
from dflash_core.cache.blocks import BlockManager
from dflash_core.cache.pools import FeaturePool, KvPool, slots_of
from dflash_core.cache.prefix import PrefixCache
from dflash_core.contracts import (
    ContextChunk,
    Outcome,
    OutcomeStatus,
    Prefill,
    RoundRequest,
    RoundResult,
    SamplingParams,
    SequenceKey,
    TargetInfo,
    TreeRows,
)
from dflash_core.errors import CheckpointMismatch
from dflash_core.models.cpu_norms import fuse_norms
from dflash_core.models.target import TargetModel
from dflash_core.raw_tensor import to_raw
from dflash_core.runners.settings import TargetSettings
from dflash_core.runners.stages import StageClock
from dflash_core.runners.target_committed import record_committed
from dflash_core.runners.target_loading import TargetFeatures, load_target_parts
from dflash_core.runners.target_memory import num_kv_blocks
from dflash_core.runners.target_plan import PackedRows, RoundPlan, admit, pack
from dflash_core.runners.target_sequences import SequenceState, TargetSequences
from dflash_core.runners.target_walk import CommittedRows, walk
from dflash_core.sampling.choose import choose_tokens
from dflash_core.sampling.rows import SamplingRows
from dflash_core.trees.structure import root_only

MAX_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class TargetRound:
    """A round's result for the router, and the context features it made, by drafter address."""

    result: RoundResult
    context: dict[str, list[ContextChunk]]


class TargetRunner:
    """Runs rounds, one at a time; holds the sequences between them. Not thread-safe."""

    def __init__(
        self,
        model: PreTrainedModel,
        features: TargetFeatures | None,
        settings: TargetSettings,
        *,
        name: str = "",
        vocab_size: int | None = None,
    ) -> None:
        """Takes `model` over and makes its caches.

        Args:
            features: None where no drafter is to be fed.
            vocab_size: ids from here on are padding and never chosen; None: there is no padding.

        Raises `UnsupportedModel`, `InvalidSettings`.
        """
        self._model = TargetModel(model, features.target_layer_ids if features else (), settings.max_rows)
        self._settings = settings
        self._projection = features.projection if features else None
        if self._projection is not None:
            fuse_norms(self._projection)
        self._vocab_size = vocab_size or self._model.vocab_size
        self._device = self._model.device
        max_model_len = min(settings.max_model_len or self._model.max_model_len, self._model.max_model_len)
        shape, hidden_size = self._model.kv_shape, self._model.hidden_size
        num_blocks = num_kv_blocks(settings, shape, hidden_size if features else 0, max_model_len, self._device)
        self._kv = KvPool(shape, num_blocks, settings.kv_block_size, settings.max_tree_rows, self._device)
        self._features: FeaturePool | None = None
        if features:
            self._features = FeaturePool(
                num_blocks, settings.kv_block_size, hidden_size, self._model.dtype, self._device
            )
        fingerprint = f"{self._model.fingerprint()}:{features.fingerprint if features else ''}"
        blocks = BlockManager(num_blocks, settings.kv_block_size)
        prefix_cache = PrefixCache(blocks, fingerprint) if settings.prefix_caching else None
        self._sequences = TargetSequences(blocks, self._model.vocab_size, max_model_len, prefix_cache)
        self.epoch = 0  # raised by whoever holds the stream to the router, each time it breaks
        self._info = TargetInfo(
            model=name or model.config.model_type,
            vocab_size=self._vocab_size,
            hidden_size=hidden_size,
            num_layers=self._model.num_layers,
            max_model_len=max_model_len,
            eos_token_ids=self._model.eos_token_ids,
            kv_block_size=settings.kv_block_size,
            num_blocks=num_blocks,
            max_rows=settings.max_rows,
            max_tree_rows=settings.max_tree_rows,
            fingerprint=fingerprint,
        )

    @classmethod
    def load(cls, target: str, drafter: str | None, settings: TargetSettings) -> TargetRunner:
        """Loads the checkpoints `target` and, where features are wanted, the projection of `drafter`; runs one row.

        Sets torch's thread count and switches TF32 off, for the whole process.
        Raises `CheckpointNotFound`, `CheckpointMismatch`, `UnsupportedModel`, `InvalidSettings`.
        """
        parts = load_target_parts(target, drafter, settings)
        runner = cls(parts.model, parts.features, settings, name=target, vocab_size=parts.vocab_size)
        runner.warm_up()
        return runner

    @property
    def info(self) -> TargetInfo:
        return replace(self._info, epoch=self.epoch)

    @property
    def free_blocks(self) -> int:
        return self._sequences.blocks.free_blocks

    @property
    def num_sequences(self) -> int:
        return len(self._sequences)

    def release_all(self) -> None:
        self._sequences.release_all()

    @torch.inference_mode()
    def run_round(self, request: RoundRequest) -> TargetRound:
        """One pass over all rows. What is wrong with a sequence's rows becomes its outcome; the others run."""
        clock = StageClock()
        settings = self._settings
        for key in request.releases:
            self._sequences.release(key)
        plan = admit(request, self._sequences, settings.max_rows, settings.max_tree_rows)
        # Not before: a sequence that was preempted has no features to send.
        refilled = [sequence for refill in request.refills if (sequence := self._sequences.refill(refill))]
        if plan.num_rows:
            rows = pack(plan, settings.kv_block_size, self._device)
            clock.lap("metadata")
            logits = self._forward(plan, rows)
            clock.lap("forward")
            sampling = SamplingRows.of(rows.sampling, self._device)
            choices = choose_tokens(logits, sampling, self._vocab_size).cpu().numpy()
            clock.lap("sample")
            committed = walk(plan, rows, choices, self._sequences.blocks)
            clock.lap("walk")
            self._commit(committed, plan.num_prefill_rows)
            record_committed(plan, self._sequences.prefix_cache)
            clock.lap("commit")
        context = self._context([*refilled, *plan.sequences()])
        clock.lap("features")
        outcomes = tuple(outcome for outcome in plan.outcomes if outcome is not None)
        assert len(outcomes) == len(request.prefills) + len(request.trees), "a sequence is without an outcome"
        result = RoundResult(
            request.round_id,
            outcomes,
            self.free_blocks,
            self.epoch,
            clock.times_us,
            self._sequences.take_preempted(),
        )
        return TargetRound(result, context)

    def warm_up(self) -> None:
        """Runs a prefill and a tree of one row, and forgets them: what is compiled on first use is compiled then.

        Raises `UnsupportedModel` where the model's attention wants what is not implemented, `CheckpointMismatch` where
        its logits are not numbers.
        """
        key, sampling = SequenceKey("warm-up", 0), SamplingParams(temperature=1.0, top_p=0.9)
        token = np.zeros(1, np.int32)
        prefill = Prefill(key, token, 0, is_last=True, num_prompt_tokens=1, sampling=sampling)
        root = self._only_outcome(RoundRequest(0, prefills=(prefill,))).bonus_token
        self._only_outcome(RoundRequest(0, trees=(TreeRows(key, 1, root_only(root)),)))
        self._sequences.release(key)

    def _only_outcome(self, request: RoundRequest) -> Outcome:
        (outcome,) = self.run_round(request).result.outcomes
        if outcome.status is not OutcomeStatus.OK:
            raise CheckpointMismatch(f"{self._info.model} cannot run one row: {outcome.message}")
        return outcome

    def _forward(self, plan: RoundPlan, rows: PackedRows) -> Tensor:
        """Logits `[num_choices, vocab_size]`; keys and values go to pages or to the staging buffer."""
        step = PagedStep(
            rows.batch,
            self._kv,
            plan.num_prefill_rows,
            self._to_device(rows.prefill_slots),
            AttentionBackend(self._settings.attention),
        )
        positions = self._to_device(rows.batch.positions.astype(np.int64))
        return self._model.forward(self._to_device(rows.token_ids), positions, step, self._to_device(rows.logit_rows))

    def _commit(self, committed: CommittedRows, num_prefill_rows: int) -> None:
        """Accepted tree rows' keys and values to pages; features of all committed rows to theirs."""
        if len(committed.tree_rows):
            self._kv.commit(self._to_device(committed.tree_rows), self._to_device(committed.tree_slots))
        if self._features is not None and self._projection is not None:
            captured = self._model.captured(self._to_device(committed.all_rows(num_prefill_rows)))
            self._features.write(self._to_device(committed.all_slots), self._projection.project_context(captured))

    def _context(self, sequences: Iterable[SequenceState]) -> dict[str, list[ContextChunk]]:
        """What these sequences' drafters lack, in chunks of at most 1 MiB."""
        context: dict[str, list[ContextChunk]] = {}
        if self._features is None:
            return context
        token_bytes = self._model.hidden_size * self._model.dtype.itemsize
        chunk_tokens = max(1, MAX_CHUNK_BYTES // token_bytes)
        for sequence in sequences:
            start, end = sequence.features_from, sequence.cached_len
            if not sequence.drafter_address or start >= end:
                continue
            slots = slots_of(sequence.block_table, start, end, self._settings.kv_block_size)
            features = self._features.read(self._to_device(slots)).cpu()
            context.setdefault(sequence.drafter_address, []).extend(
                ContextChunk(sequence.key, start + i, to_raw(features[i : i + chunk_tokens]))
                for i in range(0, end - start, chunk_tokens)
            )
            sequence.features_from = end
        return context

    def _to_device(self, array: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Tensor:
        return torch.from_numpy(array).to(self._device)
