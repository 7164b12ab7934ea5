"""Between router and drafter: blocks to draft, and drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from dflash_core.contracts.common import SamplingParams, SequenceKey, TokenIds
from dflash_core.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class DraftRanking:
    """How a drafter ranks the candidates of a sampled block: what pays is learned (ARCHITECTURE section 1).

    Nothing of it matters for a greedy block.
    """

    uses_noise: bool = True  # with the noise that the target will add
    truncation_penalty: float = 2.0  # nats less for a token outside the drafter's own top-k, top-p, min-p

    def __post_init__(self) -> None:
        if not 0.0 <= self.truncation_penalty <= 1_000.0:
            raise InvalidRequest(
                f"truncation_penalty must lie in [0, 1000], got {self.truncation_penalty}", param="truncation_penalty"
            )


DEFAULT_RANKING = DraftRanking()


class DraftBlock(NamedTuple):
    """Asks for a draft after `root_token`, which stands at position `context_len`."""

    key: SequenceKey
    root_token: int
    context_len: int  # committed tokens before the root, whose features the drafter must have
    sampling: SamplingParams
    ranking: DraftRanking = DEFAULT_RANKING


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """`opens` announce sequences before their features come; a new attempt truncates to `context_len`."""

    batch_id: int
    opens: tuple[tuple[SequenceKey, int], ...] = ()  # (key, context_len the router counts on: 0 for a new sequence)
    releases: tuple[SequenceKey, ...] = ()
    blocks: Sequence[DraftBlock] = ()  # a router's are `PackedDraftBlocks`
    wait_ms: int = 1_000  # a block is held until its context is complete, at most this long
    queued_sequences: int = 0
    num_candidates: int = 0  # most that are told of a depth, which are then the best; 0: as many as the drafter has


class Draft(NamedTuple):
    """The drafter's K likeliest tokens per depth, best first. Depth index i stands for position context_len + 1 + i.

    Where the context was incomplete or the block failed, the arrays are empty and `missing_from` or `error` says so.
    """

    key: SequenceKey
    context_len: int
    token_ids: TokenIds  # [depth, K]
    scores: npt.NDArray[np.float32]  # [depth, K] log-probabilities, falling along K
    missing_from: int | None = None  # first position whose feature is missing
    error: str | None = None

    def best(self, num_candidates: int) -> Draft:
        """With at most so many of each depth: views of them."""
        if self.token_ids.shape[1] <= num_candidates:
            return self
        token_ids, scores = self.token_ids[:, :num_candidates], self.scores[:, :num_candidates]
        return Draft(self.key, self.context_len, token_ids, scores, self.missing_from, self.error)


@dataclass(frozen=True, slots=True)
class DraftResult:
    batch_id: int
    drafts: Sequence[Draft]  # mostly `PackedDrafts`
    stage_times_us: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DrafterInfo:
    model: str
    draft_block_size: int  # depth is one less
    num_candidates: int  # K
    hidden_size: int
    vocab_size: int
    num_target_layers: int
    fingerprint: str  # of fc and hidden_norm; must equal the fc part the target applies
    address: str = ""  # its gRPC endpoint; "" in process
    draft_times_us: tuple[tuple[int, int], ...] = ()  # (blocks, time) of drafts measured at the start, blocks rising


class Drafter(Protocol):
    """A drafter as the router sees it, in process or over gRPC."""

    @property
    def info(self) -> DrafterInfo: ...

    async def draft(self, request: DraftRequest) -> DraftResult:
        """Raises `Unavailable` when the drafter is gone."""
        ...
