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
class PromptGroup:
    """What an arm decodes at a time: as one request ends, the next begins.

    `lead_in` goes first, as many as there are requests at a time, and ends evenly, one after the other: from then on
    requests begin and end as under lasting load. Began all at once, requests of one length would end all at once too,
    round after round, where nothing is drafted, and one by one where something is.
    """

    prompts: tuple[GroupPrompt, ...]
    lead_in: tuple[GroupPrompt, ...] = ()


@dataclass(frozen=True, slots=True)
class Decoded:
    """The outputs of one group, and what they cost. Counts are sums over the group's sequences; those of the lead-in
    are in `timed_tokens`, rounds and stages alone.

    Timed while there are as many requests at a time as the cell says: what a server does when the last of them run out
    says nothing about that load, nor does the prefill of all that begin at once.
    """

    # From the first token of the last one of the lead-in, or the submission where there is none, to the first end after
    # which no further request begins.
    seconds: float
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
    """One arm, ready to decode. Times are by the clock of the event loop on which it does."""

    @property
    def num_tokens(self) -> int:
        """Written so far of the group that it decodes, or decoded last, with the lead-in."""
        ...

    async def decode(self, group: PromptGroup, cell: Cell, timeline: Timeline | None) -> Decoded:
        """Decodes the group, `cell.concurrency` at a time.

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
