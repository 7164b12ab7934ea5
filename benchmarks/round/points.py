"""Which rounds are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Round:
    """What one target round consists of: a tree for each sequence, and perhaps rows of another prompt."""

    tree_rows: int  # of each tree, with the root; 1 is plain decoding
    prefill_rows: int = 0  # the first rows of a new prompt
    is_accepted: bool = False  # each tree is one path that the target accepts to its end; else nothing is accepted


@dataclass(frozen=True, slots=True)
class Cell:
    """Rounds that run on the same sequences."""

    batch: int
    context: int  # tokens in pages, of each sequence, at the start
    rounds: tuple[Round, ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """Every context with every batch, whose trees have these sizes. At the middle context of those measured also
    rounds with a prefill chunk beside the smallest real trees, and rounds in which whole paths are accepted."""

    contexts: tuple[int, ...]
    tree_rows: Mapping[int, tuple[int, ...]]  # by batch
    prefill_rows: int
    repeats: int

    def cells(self, batches: Sequence[int], contexts: Sequence[int]) -> list[Cell]:
        middle = sorted(contexts)[len(contexts) // 2]
        return [
            Cell(batch, context, self._rounds(self.tree_rows[batch], context == middle))
            for batch in batches
            for context in contexts
        ]

    def _rounds(self, tree_rows: tuple[int, ...], is_middle: bool) -> tuple[Round, ...]:
        rounds = tuple(Round(rows) for rows in tree_rows)
        if is_middle:
            rows = next(rows for rows in tree_rows if rows > 1)
            rounds += (Round(rows, prefill_rows=self.prefill_rows), Round(rows, is_accepted=True))
        return rounds


LARGE = Grid((1 << 10, 4 << 10, 32 << 10), {1: (1, 16, 64, 256), 8: (16,), 32: (8,)}, prefill_rows=512, repeats=20)
SMALL = Grid((32, 96), {1: (1, 8), 2: (4,)}, prefill_rows=16, repeats=3)
