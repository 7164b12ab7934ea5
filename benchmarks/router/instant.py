"""Runners without a model: they answer at once, from what was prepared before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cluster.requests import GenerationRequest, TokenEvent
from dflash_core.contracts import (
    ContextAck,
    ContextChunk,
    DraftBlock,
    DrafterInfo,
    Outcome,
    OutcomeStatus,
    PackedDraftBlocks,
    PackedDrafts,
    PackedOutcomes,
    Prefill,
    RoundRequest,
    RoundResult,
    SamplingParams,
    SequenceKey,
    TargetInfo,
    TreeRows,
)

DEPTH, NUM_CANDIDATES = 15, 64  # of a draft: those of the published checkpoints, and of our drafters
VOCAB_SIZE = 151_936
PROMPT_TOKENS = 32
_MODEL, _FC = "instant", "fc"
_ACCEPTED = 3  # draft tokens of every tree, where it has as many
_EVERYTHING = 2**31 - 1  # context that the drafter says it has: no block waits for features
_NUM_PREPARED = 64


@dataclass(frozen=True, slots=True)
class Load:
    """Sequences that decode together, and the nodes that each one's tree may have."""

    num_sequences: int
    tree_budget: int

    @property
    def max_rows(self) -> int:
        return self.num_sequences * (self.tree_budget + 1)

    def requests(self) -> list[GenerationRequest]:
        """They end with the stream they came on: nobody decodes so many tokens."""
        prompt = np.arange(PROMPT_TOKENS, dtype=np.int32)
        return [
            GenerationRequest(f"sequence-{number}", prompt, PROMPT_TOKENS, 1 << 24, SamplingParams(seed=number))
            for number in range(self.num_sequences)
        ]


@dataclass(frozen=True, slots=True)
class InstantOutput:
    """Implements `cluster.transports.runner_protocols.RoundOutput`: no features, since nobody reads them."""

    result: RoundResult
    context: Mapping[str, list[ContextChunk]] = field(default_factory=dict)


class InstantTarget:
    """Implements `TargetModelRunner`: takes a tree's first nodes, and knows no sequence. Blocks never run out."""

    num_sequences = 0
    free_blocks = 1 << 24

    def __init__(self, load: Load) -> None:
        self.info = TargetInfo(
            model=_MODEL,
            vocab_size=VOCAB_SIZE,
            hidden_size=1,
            num_layers=1,
            max_model_len=1 << 30,
            eos_token_ids=(),
            kv_block_size=1 << 20,
            num_blocks=self.free_blocks,
            max_rows=load.max_rows,
            max_tree_rows=load.max_rows,
            fingerprint=f"weights:{_FC}",
        )

    def run_round(self, request: RoundRequest) -> InstantOutput:
        outcomes = PackedOutcomes.of([*map(_prefilled, request.prefills), *map(_verified, request.trees)])
        return InstantOutput(RoundResult(request.round_id, outcomes, self.free_blocks, 0))

    def release_all(self) -> None:
        """It holds none."""

    def close(self) -> None:
        """Nothing runs beside it."""


class InstantDrafter:
    """Implements `DrafterModelRunner`: random drafts that were drawn before, whose scores fall with rank."""

    stage_times_us: dict[str, int] = {}  # noqa: RUF012  # no stage takes any

    def __init__(self) -> None:
        self.info = DrafterInfo(_MODEL, DEPTH + 1, NUM_CANDIDATES, 1, VOCAB_SIZE, 1, _FC)
        rng = np.random.default_rng(0)
        shape = (_NUM_PREPARED, DEPTH, NUM_CANDIDATES)
        logits = rng.normal(scale=2.5, size=shape).astype(np.float32)
        scores = -np.sort(-(logits - np.log(np.exp(logits).sum(-1, keepdims=True))), axis=-1)
        self._scores = scores.astype(np.float32)  # [prepared, depth, K]
        # Distinct within a depth.
        first = rng.integers(0, VOCAB_SIZE - NUM_CANDIDATES, size=shape[:2])
        self._token_ids = (first[..., None] + np.arange(NUM_CANDIDATES)).astype(np.int32)

    def draft(self, blocks: Sequence[DraftBlock]) -> PackedDrafts:
        packed = PackedDraftBlocks.of(blocks)
        prepared = slice(len(blocks)) if len(blocks) <= _NUM_PREPARED else np.arange(len(blocks)) % _NUM_PREPARED
        return PackedDrafts(
            packed.keys,
            packed.context_lens,
            [DEPTH] * len(blocks),
            [NUM_CANDIDATES] * len(blocks),
            self._token_ids[prepared].ravel(),
            self._scores[prepared].ravel(),
        )

    def open(self, key: SequenceKey, context_len: int) -> None:
        """It holds none."""

    def append_context(self, chunks: Sequence[ContextChunk]) -> list[ContextAck]:
        raise AssertionError("the instant target sends no features")

    def context_len(self, key: SequenceKey) -> int | None:
        return _EVERYTHING

    def release(self, key: SequenceKey) -> None:
        """It holds none."""

    def release_all(self) -> None:
        """It holds none."""


class Ignored:
    """Implements `EventSink`."""

    def put(self, events: list[TokenEvent]) -> None:
        """Whether all still run is asked of the router."""


def _prefilled(prefill: Prefill) -> Outcome:
    end = prefill.start + len(prefill.token_ids)
    return Outcome(prefill.key, OutcomeStatus.OK, np.empty(0, np.int32), 1 if prefill.is_last else -1, end)


def _verified(rows: TreeRows) -> Outcome:
    """Preorder, likeliest first: the spine is the first rows."""
    depths = rows.tree.depths[: _ACCEPTED + 1].tolist()
    num_accepted = next((row - 1 for row, depth in enumerate(depths) if row != depth), len(depths) - 1)
    accepted = rows.tree.token_ids[1 : num_accepted + 1]
    return Outcome(rows.key, OutcomeStatus.OK, accepted, 1, rows.root_position + num_accepted + 1)
