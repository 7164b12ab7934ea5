"""`TargetRunner`: one target model with its caches. A round is admit → pack → pass → commit → features."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedModel

from dflash_core.cache.blocks import BlockManager
from dflash_core.cache.pools import slots_of
from dflash_core.cache.prefix import PrefixCache
from dflash_core.contracts import (
    ContextChunk,
    Outcome,
    OutcomeStatus,
    PackedOutcomes,
    Prefill,
    RoundRequest,
    RoundResult,
    SamplingParams,
    SequenceKey,
    TargetInfo,
    TreeRows,
)
from dflash_core.errors import CheckpointMismatch, RanksLost
from dflash_core.parallel.group import Launcher, RankGroup
from dflash_core.parallel.leading import LeadingPass
from dflash_core.parallel.processes import ProcessLauncher
from dflash_core.raw_tensor import to_raw
from dflash_core.runners.devices import named_device_errors
from dflash_core.runners.round_timing import time_rounds
from dflash_core.runners.settings import TargetSettings
from dflash_core.runners.stages import StageClock
from dflash_core.runners.target_assembly import assemble
from dflash_core.runners.target_commit import CommittedSpan, commit, reserve_paths
from dflash_core.runners.target_committed import record_committed
from dflash_core.runners.target_loading import TargetFeatures, check_target_parts, load_target_parts
from dflash_core.runners.target_pack import pack
from dflash_core.runners.target_pass import RowFeatures
from dflash_core.runners.target_plan import admit
from dflash_core.runners.target_sequences import SequenceState, TargetSequences
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
        group: RankGroup | None = None,
    ) -> None:
        """Takes `model` over and makes its caches.

        Args:
            features: None where no drafter is to be fed.
            vocab_size: ids from here on are padding and never chosen; None: there is no padding.
            group: the other ranks of a model of which this process holds a part; they are doing the same.

        Raises `UnsupportedModel`, `InvalidSettings`.
        """
        assembly = assemble(
            model,
            features,
            settings,
            name=name,
            vocab_size=vocab_size,
            ranks=None if group is None else group.ranks,
        )
        self._model, self._caches, self.memory = assembly.model, assembly.caches, assembly.memory
        self._settings = settings
        self._group = group
        self._pass = assembly.target_pass if group is None else LeadingPass(assembly.target_pass, group)
        self._device = self._model.device
        num_blocks = self.memory.num_blocks
        fingerprint = f"{assembly.fingerprint}:{features.fingerprint if features else ''}"
        blocks = BlockManager(num_blocks, settings.kv_block_size)
        prefix_cache = PrefixCache(blocks, fingerprint) if settings.prefix_caching else None
        self._sequences = TargetSequences(blocks, self._model.vocab_size, assembly.max_model_len, prefix_cache)
        self.epoch = 0  # raised by whoever holds the stream to the router, each time it breaks
        self._info = TargetInfo(
            model=assembly.name,
            vocab_size=assembly.vocab_size,
            hidden_size=self._model.hidden_size,
            num_layers=self._model.num_layers,
            max_model_len=assembly.max_model_len,
            eos_token_ids=self._model.eos_token_ids,
            kv_block_size=settings.kv_block_size,
            num_blocks=num_blocks,
            max_rows=settings.max_rows,
            max_tree_rows=settings.max_tree_rows,
            fingerprint=fingerprint,
            row_sizes=self._pass.row_sizes,
        )

    @classmethod
    def load(
        cls, target: str, drafter: str | None, settings: TargetSettings, launcher: Launcher | None = None
    ) -> TargetRunner:
        """Loads the checkpoints `target` and, where features are wanted, the projection of `drafter`; runs one row,
        then times itself. With `tensor_parallel` beyond 1 `launcher` starts the other ranks; None: processes of this
        machine.

        Sets torch's thread count and switches TF32 off, for the whole process.
        Raises `CheckpointNotFound`, `CheckpointMismatch`, `UnsupportedModel`, `InvalidSettings`, `RanksLost`.
        """
        if settings.tensor_parallel == 1:
            return cls._loaded(target, drafter, settings, None)
        check_target_parts(target, drafter, settings)  # before anything is started
        group = RankGroup.start(target, settings, launcher or ProcessLauncher())
        with group.starting():
            return cls._loaded(target, drafter, settings, group)

    @classmethod
    def _loaded(
        cls, target: str, drafter: str | None, settings: TargetSettings, group: RankGroup | None
    ) -> TargetRunner:
        parts = load_target_parts(target, drafter, settings, None if group is None else group.ranks)
        runner = cls(parts.model, parts.features, settings, name=target, vocab_size=parts.vocab_size, group=group)
        runner.memory.log()
        runner.warm_up()
        runner.time_itself()
        return runner

    @property
    def rank_pids(self) -> list[int]:
        """Process ids of the other ranks."""
        return [] if self._group is None else self._group.pids

    def check_ranks(self) -> None:
        """Raises `RanksLost` where another rank has ended."""
        if self._group is not None and (fault := self._group.fault()) is not None:
            raise RanksLost(fault)

    def close(self) -> None:
        """Ends the other ranks of the model; runs no round afterwards. Idempotent."""
        if self._group is not None:
            self._group.close()

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
        """One pass over all rows. What is wrong with a sequence's rows becomes its outcome; the others run.

        Raises `ModelLost` where only a new process can go on: the GPU is of no use any more, or a rank is gone.
        """
        with named_device_errors(f"target {self._info.model}"):
            return self._run_round(request)

    def _run_round(self, request: RoundRequest) -> TargetRound:
        clock = StageClock()
        settings = self._settings
        for key in request.releases:
            self._sequences.release(key)
        plan = admit(request, self._sequences, settings.max_rows, settings.max_tree_rows)
        # Not before: a sequence that was preempted has no features to send.
        refilled = [sequence for refill in request.refills if (sequence := self._sequences.refill(refill))]
        features: RowFeatures | None = None
        committed: list[CommittedSpan] = []
        if plan.num_rows:
            reserve_paths(plan, self._sequences.blocks)
            rows = pack(plan, settings.kv_block_size, self._device)
            clock.lap("metadata")
            found = self._pass.run(rows, clock)
            features = found.features
            committed = commit(plan, rows, found, self._sequences.blocks)
            record_committed(plan, self._sequences.prefix_cache)
            clock.lap("outcomes")
        context = self._context([*refilled, *plan.sequences()], features, committed)
        clock.lap("features")
        outcomes = [outcome for outcome in plan.outcomes if outcome is not None]
        assert len(outcomes) == len(request.prefills) + len(request.trees), "a sequence is without an outcome"
        result = RoundResult(
            request.round_id,
            PackedOutcomes.of(outcomes),
            self.free_blocks,
            self.epoch,
            clock.times_us,
            self._sequences.take_preempted(),
        )
        return TargetRound(result, context)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Runs a prefill and a tree of one row, and forgets them: what is compiled on first use is compiled then, and
        on a GPU every graph captured.

        Raises `UnsupportedModel` where the model's attention wants what is not implemented, `CheckpointMismatch` where
        its logits are not numbers.
        """
        key, sampling = SequenceKey("warm-up", 0), SamplingParams(temperature=1.0, top_p=0.9)
        token = np.zeros(1, np.int32)
        prefill = Prefill(key, token, 0, is_last=True, num_prompt_tokens=1, sampling=sampling)
        root = self._only_outcome(RoundRequest(0, prefills=(prefill,))).bonus_token
        self._only_outcome(RoundRequest(0, trees=(TreeRows(key, 1, root_only(root)),)))
        self._sequences.release(key)
        self._pass.prepare()

    def time_itself(self) -> None:
        """Runs rounds of several sizes and says in `info` what they took. Raises `CheckpointMismatch` as `warm_up`."""
        with self._sequences.without_prefix_cache():
            times = time_rounds(lambda request: self.run_round(request).result, self._info, self.free_blocks)
        self._info = replace(self._info, round_times_us=times)

    def _only_outcome(self, request: RoundRequest) -> Outcome:
        (outcome,) = self.run_round(request).result.outcomes
        if outcome.status is not OutcomeStatus.OK:
            raise CheckpointMismatch(f"{self._info.model} cannot run one row: {outcome.message}")
        return outcome

    def _context(
        self, sequences: Iterable[SequenceState], features: RowFeatures | None, committed: list[CommittedSpan]
    ) -> dict[str, list[ContextChunk]]:
        """What these sequences' drafters lack, in chunks of at most 1 MiB.

        What the round committed is on the host already; what is older is read from the feature pages.
        """
        context: dict[str, list[ContextChunk]] = {}
        if self._caches.features is None:
            return context
        token_bytes = self._model.hidden_size * self._model.dtype.itemsize
        chunk_tokens = max(1, MAX_CHUNK_BYTES // token_bytes)
        spans = {id(span.sequence): span for span in committed}
        for sequence in sequences:
            start, end = sequence.features_from, sequence.cached_len
            if not sequence.drafter_address or start >= end:
                continue
            chunks = context.setdefault(sequence.drafter_address, [])
            span = spans.get(id(sequence))
            if features is not None and span is not None and start >= span.start:
                rows = span.rows[start - span.start :]
                for i in range(0, len(rows), chunk_tokens):
                    chunk = features.of(rows[i : i + chunk_tokens])
                    chunks.append(ContextChunk(sequence.key, start + i, chunk))
            else:
                slots = slots_of(sequence.block_table, start, end, self._settings.kv_block_size)
                paged = self._caches.features.read(torch.from_numpy(slots).to(self._device)).cpu()
                for i in range(0, end - start, chunk_tokens):
                    chunks.append(ContextChunk(sequence.key, start + i, to_raw(paged[i : i + chunk_tokens])))
            sequence.features_from = end
        return context
