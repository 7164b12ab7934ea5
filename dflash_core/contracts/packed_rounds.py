"""A round in columns: its trees, as they are built, travel and are packed into a forward, and what became of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

from dflash_core.contracts.common import DraftTree, SequenceKey, TokenIds
from dflash_core.contracts.packed import Packed, joined
from dflash_core.contracts.rounds import Outcome, OutcomeStatus, TreeRows


@dataclass(frozen=True, slots=True, eq=False)
class PackedTreeRows(Packed[TreeRows]):
    keys: Sequence[SequenceKey]
    root_positions: Sequence[int]
    num_rows: Sequence[int]  # of each tree, its root included
    token_ids: TokenIds  # [rows]
    depths: npt.NDArray[np.int32]  # [rows]

    @classmethod
    def _pack(cls, trees: Sequence[TreeRows]) -> PackedTreeRows:
        return cls(
            keys=[rows.key for rows in trees],
            root_positions=[rows.root_position for rows in trees],
            num_rows=[rows.tree.num_rows for rows in trees],
            token_ids=joined([rows.tree.token_ids for rows in trees], np.int32),
            depths=joined([rows.tree.depths for rows in trees], np.int32),
        )

    def __iter__(self) -> Iterator[TreeRows]:
        begin = 0
        for key, root_position, count in zip(self.keys, self.root_positions, self.num_rows, strict=True):
            end = begin + count
            yield TreeRows(key, root_position, DraftTree(self.token_ids[begin:end], self.depths[begin:end]))
            begin = end


@dataclass(frozen=True, slots=True, eq=False)
class PackedOutcomes(Packed[Outcome]):
    keys: Sequence[SequenceKey]
    statuses: Sequence[OutcomeStatus]
    num_accepted: Sequence[int]
    token_ids: TokenIds  # [Σ num_accepted]
    bonus_tokens: Sequence[int]
    cached_lens: Sequence[int]
    num_hit_tokens: Sequence[int]
    messages: Mapping[int, str] = field(default_factory=dict)  # by place: most outcomes have none

    @classmethod
    def _pack(cls, outcomes: Sequence[Outcome]) -> PackedOutcomes:
        return cls(
            keys=[outcome.key for outcome in outcomes],
            statuses=[outcome.status for outcome in outcomes],
            num_accepted=[outcome.num_accepted for outcome in outcomes],
            token_ids=joined([outcome.token_ids for outcome in outcomes], np.int32),
            bonus_tokens=[outcome.bonus_token for outcome in outcomes],
            cached_lens=[outcome.cached_len for outcome in outcomes],
            num_hit_tokens=[outcome.num_hit_tokens for outcome in outcomes],
            messages={place: outcome.message for place, outcome in enumerate(outcomes) if outcome.message},
        )

    def after(self, num_outcomes: int) -> PackedOutcomes:
        """Without the first so many."""
        if num_outcomes == 0:
            return self
        return PackedOutcomes(
            self.keys[num_outcomes:],
            self.statuses[num_outcomes:],
            self.num_accepted[num_outcomes:],
            self.token_ids[sum(self.num_accepted[:num_outcomes]) :],
            self.bonus_tokens[num_outcomes:],
            self.cached_lens[num_outcomes:],
            self.num_hit_tokens[num_outcomes:],
            {place - num_outcomes: text for place, text in self.messages.items() if place >= num_outcomes},
        )

    def __iter__(self) -> Iterator[Outcome]:
        ends = accumulate(self.num_accepted, initial=0)
        for place, (begin, end) in enumerate(pairwise(ends)):
            yield Outcome(
                self.keys[place],
                self.statuses[place],
                self.token_ids[begin:end],
                self.bonus_tokens[place],
                self.cached_lens[place],
                self.messages.get(place, ""),
                self.num_hit_tokens[place],
            )
