"""`RoundLoad`: what decides how long a round takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dflash_core.contracts import (
    OUTCOME_OK,
    PackedOutcomes,
    PackedTreeRows,
    Prefill,
    RoundRequest,
    RoundResult,
    TreeRows,
)


@dataclass(frozen=True, slots=True)
class RoundLoad:
    """A round in a few numbers. Rows are computed, a sequence's context is read once for all of its rows, and each row
    attends to it.

    A tree row's context is the tokens before its root; that of a prefill row is the tokens before it, those of its own
    chunk included.
    """

    num_rows: int
    num_sequences: int
    context_tokens: float  # before the rows of each sequence, all sequences together
    context_rows: float  # the context of each row, all rows together
    has_nodes: bool = False  # besides roots

    @classmethod
    def planned(cls, prefills: Iterable[Prefill], trees: Sequence[TreeRows]) -> RoundLoad:
        """Of chunks as they stand, should the prefix cache have nothing of them, and trees."""
        packed = PackedTreeRows.of(trees)
        return cls._of(prefills, list(zip(packed.num_rows, packed.root_positions, strict=True)))

    @classmethod
    def done(cls, request: RoundRequest, result: RoundResult) -> RoundLoad:
        """Of what was computed: without refused rows and without tokens that the prefix cache had. An outcome that says
        nonsense counts for nothing."""
        outcomes = PackedOutcomes.of(result.outcomes)
        split = len(request.prefills)
        prefills = (
            prefill.skip(num_hit_tokens)
            for prefill, status, num_hit_tokens in zip(
                request.prefills, outcomes.statuses[:split], outcomes.num_hit_tokens[:split], strict=True
            )
            if status is OUTCOME_OK and prefill.may_hit(num_hit_tokens)
        )
        packed = PackedTreeRows.of(request.trees)
        placed = [
            (num_rows, root_position)
            for num_rows, root_position, status in zip(
                packed.num_rows, packed.root_positions, outcomes.statuses[split:], strict=True
            )
            if status is OUTCOME_OK
        ]
        return cls._of(prefills, placed)

    @classmethod
    def _of(cls, prefills: Iterable[Prefill], trees: list[tuple[int, int]]) -> RoundLoad:
        """`trees`: the rows of each, and the position of its root."""
        num_rows = num_sequences = context_tokens = context_rows = 0
        for prefill in prefills:
            count = len(prefill.token_ids)
            num_rows += count
            num_sequences += 1
            context_tokens += prefill.start
            context_rows += count * prefill.start + count * (count - 1) // 2
        num_tree_rows = sum([count for count, _ in trees])
        num_rows += num_tree_rows
        num_sequences += len(trees)
        context_tokens += sum([root_position for _, root_position in trees])
        context_rows += sum([count * root_position for count, root_position in trees])
        has_nodes = num_tree_rows > len(trees)  # a root each
        return cls(num_rows, num_sequences, context_tokens, context_rows, has_nodes)
