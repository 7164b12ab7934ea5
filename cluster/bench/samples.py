"""What is measured: one arm decoding one group of prompts once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cluster.bench.arms import Arm, Cell
from cluster.router.timeline import Timeline


@dataclass(frozen=True, slots=True)
class GroupPrompt:
    """A tokenised prompt. The seed is the same in every arm, so that outputs can be compared token for token."""

    token_ids: tuple[int, ...]
    max_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """The outputs of one group, and what they cost. Counts are sums over the group's sequences.

    Timed while there are as many requests at a time as the cell says: what a server does when the last of them run out
    says nothing about that load.
    """

    seconds: float  # from the first submission to the first end after which no further request begins
    timed_tokens: int  # written in that time
    outputs: tuple[tuple[int, ...], ...]  # in the order of the prompts
    verified_trees: int = 0  # rounds of each sequence after its prefill
    accepted_tokens: int = 0
    tree_nodes: int = 0
    rounds: int = 0  # of the router: passes of the target
    stage_us: Mapping[str, int] = field(default_factory=dict)  # sums by stage

    @property
    def num_tokens(self) -> int:
        return sum(len(output) for output in self.outputs)

    @property
    def tokens_per_second(self) -> float:
        return self.timed_tokens / self.seconds


class Decoder(Protocol):
    """One arm, ready to decode."""

    async def decode(self, prompts: list[GroupPrompt], cell: Cell, timeline: Timeline | None) -> Decoded:
        """Decodes the prompts, `cell.concurrency` at a time: as one ends the next begins.

        Draws its rounds, where it has any, on the timeline.

        Raises the `DFlashError` of the first that failed.
        """
        ...


@dataclass(frozen=True, slots=True)
class Sample:
    cell: Cell
    arm: Arm
    repeat: int
    group: int
    decoded: Decoded
