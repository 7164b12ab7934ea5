"""Recorded traces as what simulated targets write and simulated drafters propose.

A sequence follows one trace from some place on, and goes round at its end:

    trace     t0 t1 t2 t3 t4 t5 │ t0 t1 …        its drafts: candidates recorded at the same places
    start = 2       └── output 0, 1, 2, …
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.traces.trace import SequenceTrace, Trace
from dflash_core.contracts import TokenIds, TreeRows
from dflash_core.errors import InvalidRequest
from dflash_core.jit import jit

EMBEDDED_TRACES = Path(__file__).with_name("embedded.npz")  # by `python -m benchmarks.traces`
_SHORTEST_ROUNDS = 4  # a trace must be this many times as long as a draft is deep, or its end would be all there is

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]


class Script(NamedTuple):
    """What a sequence will write. It travels as the seed, the one thing that targets and drafters both get to see."""

    trace: int
    start: int
    num_prompt_tokens: int

    @property
    def seed(self) -> int:
        return self.trace << 48 | self.start << 32 | self.num_prompt_tokens

    @classmethod
    def of_seed(cls, seed: int) -> Script:
        return cls(seed >> 48, seed >> 32 & 0xFFFF, seed & 0xFFFFFFFF)


class Playback:
    """Traces of one pair. Position p of a sequence is output number p − num_prompt_tokens."""

    def __init__(self, traces: Sequence[SequenceTrace]) -> None:
        """Raises `InvalidRequest` where none of them is long enough, or they were drafted to different depths."""
        depths = {trace.candidate_ids.shape[1] for trace in traces}
        if len(depths) != 1:
            raise InvalidRequest(f"the traces must have drafts of one depth, got {sorted(depths)}")
        (self.depth,) = depths
        self.traces = [trace for trace in traces if len(trace.token_ids) >= _SHORTEST_ROUNDS * self.depth]
        if not self.traces:
            raise InvalidRequest(f"no trace has at least {_SHORTEST_ROUNDS * self.depth} tokens")
        self.num_candidates = self.traces[0].candidate_ids.shape[2]
        self.vocab_size = 1 + max(int(trace.candidate_ids.max()) for trace in self.traces)
        self.vocab_size = max(self.vocab_size, 1 + max(int(trace.token_ids.max()) for trace in self.traces))
        rings = [np.resize(trace.token_ids, len(trace.token_ids) + self.depth + 1) for trace in self.traces]
        self._ring: Ints = np.concatenate(rings)  # each trace and its beginning once more
        self._offsets = np.cumsum([0, *(len(ring) for ring in rings)]).tolist()
        self._lengths = [len(trace.token_ids) for trace in self.traces]

    @classmethod
    def load(cls, path: Path = EMBEDDED_TRACES) -> Playback:
        return cls(Trace.load(path).sequences)

    @property
    def temperatures(self) -> list[float]:
        return [trace.sampling.temperature for trace in self.traces]

    def traces_at(self, temperature: float | None) -> list[int]:
        """Their numbers; None: of all. Raises `InvalidRequest` where nothing was recorded at that temperature."""
        found = [trace for trace, recorded in enumerate(self.temperatures) if temperature in (None, recorded)]
        if not found:
            raise InvalidRequest(
                f"temperature must be one of {sorted(set(self.temperatures))}, as recorded, got {temperature}",
                param="temperature",
            )
        return found

    def length(self, trace: int) -> int:
        return self._lengths[trace]

    def place(self, script: Script, position: int) -> int:
        """Where the token of this position stands in the ring."""
        output = script.start + position - script.num_prompt_tokens
        return int(self._offsets[script.trace]) + output % self._lengths[script.trace]

    def tokens_at(self, place: int, num_tokens: int) -> TokenIds:
        """The token at a place and those after it; at most depth + 1 of them."""
        return self._ring[place : place + num_tokens]

    def output(self, script: Script, num_tokens: int) -> TokenIds:
        """The first tokens of a sequence's output, however many."""
        places = np.arange(script.start, script.start + num_tokens)
        return self.traces[script.trace].token_ids.take(places, mode="wrap")

    def draft(self, script: Script, root_position: int) -> tuple[TokenIds, npt.NDArray[np.float32]]:
        """Candidates and scores, both `[depth, K]`, after the root at a position."""
        trace = self.traces[script.trace]
        index = self.place(script, root_position) - int(self._offsets[script.trace])
        return trace.candidate_ids[index], trace.scores[index]

    def num_accepted(self, trees: Sequence[TreeRows], root_places: Sequence[int]) -> list[int]:
        """How many nodes of each tree the target accepts, whose roots stand at these places of the ring."""
        if not trees:
            return []
        ends = np.cumsum([piece.tree.num_rows for piece in trees])
        accepted = _walk(
            np.concatenate([piece.tree.token_ids for piece in trees]),
            np.concatenate([piece.tree.depths for piece in trees]),
            ends,
            np.asarray(root_places, np.int64),
            self._ring,
        )
        return [int(count) for count in accepted]


@jit
def _walk(token_ids: Ints, depths: Ints, ends: Longs, root_places: Longs, ring: Ints) -> Longs:
    """In preorder an accepted node's children follow it, and the first row that is not deeper ends its subtree."""
    accepted = np.zeros(len(ends), np.int64)
    row = 0
    for tree in range(len(ends)):
        depth = 0
        row += 1  # the root
        while row < ends[tree] and depths[row] > depth:
            if depths[row] == depth + 1 and token_ids[row] == ring[root_places[tree] + 1 + depth]:
                depth += 1
            row += 1
        accepted[tree] = depth
        row = ends[tree]
    return accepted
