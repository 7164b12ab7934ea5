"""Blocks to draft, and drafts, in columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from dflash_core.contracts.common import SamplingParams, SequenceKey, TokenIds
from dflash_core.contracts.drafts import Draft, DraftBlock, DraftRanking
from dflash_core.contracts.packed import Packed, joined


@dataclass(frozen=True, slots=True, eq=False)
class PackedDraftBlocks(Packed[DraftBlock]):
    keys: Sequence[SequenceKey]
    root_tokens: Sequence[int]
    context_lens: Sequence[int]
    samplings: Sequence[SamplingParams]
    rankings: Sequence[DraftRanking]

    @classmethod
    def _pack(cls, blocks: Sequence[DraftBlock]) -> PackedDraftBlocks:
        return cls(
            keys=[block.key for block in blocks],
            root_tokens=[block.root_token for block in blocks],
            context_lens=[block.context_len for block in blocks],
            samplings=[block.sampling for block in blocks],
            rankings=[block.ranking for block in blocks],
        )

    def __iter__(self) -> Iterator[DraftBlock]:
        return map(DraftBlock, self.keys, self.root_tokens, self.context_lens, self.samplings, self.rankings)


@dataclass(frozen=True, slots=True, eq=False)
class PackedDrafts(Packed[Draft]):
    keys: Sequence[SequenceKey]
    context_lens: Sequence[int]
    depths: Sequence[int]
    num_candidates: Sequence[int]  # of a depth: K
    token_ids: TokenIds  # [Σ depth · K], of each draft [depth, K]
    scores: npt.NDArray[np.float32]  # the same
    missing_from: Mapping[int, int] = field(default_factory=dict)  # by place, as `errors`: most drafts have neither
    errors: Mapping[int, str] = field(default_factory=dict)
    begins: Sequence[int] = field(init=False)  # where the candidates of each draft begin

    def __post_init__(self) -> None:
        sizes = [depth * width for depth, width in zip(self.depths, self.num_candidates, strict=True)]
        object.__setattr__(self, "begins", list(accumulate(sizes, initial=0))[:-1])

    @classmethod
    def _pack(cls, drafts: Sequence[Draft]) -> PackedDrafts:
        return cls(
            keys=[draft.key for draft in drafts],
            context_lens=[draft.context_len for draft in drafts],
            depths=[draft.token_ids.shape[0] for draft in drafts],
            num_candidates=[draft.token_ids.shape[1] for draft in drafts],
            token_ids=joined([draft.token_ids for draft in drafts], np.int32),
            scores=joined([draft.scores for draft in drafts], np.float32),
            missing_from={
                place: draft.missing_from for place, draft in enumerate(drafts) if draft.missing_from is not None
            },
            errors={place: draft.error for place, draft in enumerate(drafts) if draft.error is not None},
        )

    @classmethod
    def joined(cls, parts: Sequence[PackedDrafts]) -> PackedDrafts:
        """Of several answers, one after the other."""
        starts = list(accumulate(map(len, parts), initial=0))
        return cls(
            keys=[key for part in parts for key in part.keys],
            context_lens=[context_len for part in parts for context_len in part.context_lens],
            depths=[depth for part in parts for depth in part.depths],
            num_candidates=[width for part in parts for width in part.num_candidates],
            token_ids=joined([part.token_ids for part in parts], np.int32),
            scores=joined([part.scores for part in parts], np.float32),
            missing_from={
                start + place: position
                for start, part in zip(starts, parts, strict=False)
                for place, position in part.missing_from.items()
            },
            errors={
                start + place: error
                for start, part in zip(starts, parts, strict=False)
                for place, error in part.errors.items()
            },
        )

    def token_ids_of(self, place: int) -> TokenIds:
        """`[depth, K]` of one draft."""
        begin, depth, width = self.begins[place], self.depths[place], self.num_candidates[place]
        return self.token_ids[begin : begin + depth * width].reshape(depth, width)

    def best(self, num_candidates: int) -> PackedDrafts:
        """With at most so many candidates of each depth."""
        widths = {width for depth, width in zip(self.depths, self.num_candidates, strict=True) if depth}
        if not widths or max(widths) <= num_candidates:
            return self
        if len(widths) > 1:
            return PackedDrafts.of([draft.best(num_candidates) for draft in self])
        shape = (-1, widths.pop())
        return replace(
            self,
            num_candidates=[num_candidates] * len(self),
            token_ids=self.token_ids.reshape(shape)[:, :num_candidates].ravel(),
            scores=self.scores.reshape(shape)[:, :num_candidates].ravel(),
        )

    def __iter__(self) -> Iterator[Draft]:
        for place, begin in enumerate(self.begins):
            shape = (self.depths[place], self.num_candidates[place])
            yield Draft(
                self.keys[place],
                self.context_lens[place],
                self.token_ids_of(place),
                self.scores[begin : begin + shape[0] * shape[1]].reshape(shape),
                self.missing_from.get(place),
                self.errors.get(place),
            )
