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
    """The outputs of one group, and what they cost. Counts are sums over the group's sequences."""

    seconds: float  # from the first submission to the last token
    outputs: tuple[tuple[int, ...], ...]  # in the order of the prompts
    verified_trees: int = 0  # rounds of each sequence after its prefill
    accepted_tokens: int = 0
    tree_nodes: int = 0
    rounds: int = 0  # of the router: passes of the target
    stage_us: Mapping[str, int] = field(default_factory=dict)  # sums by stage

    @property
    def num_tokens(self) -> int:
        return sum(len(output) for output in self.outputs)


class Decoder(Protocol):
    """One arm, ready to decode."""

    async def decode(self, prompts: list[GroupPrompt], temperature: float, timeline: Timeline | None) -> Decoded:
        """Decodes all prompts at the same time, and draws its rounds, where it has any, on the timeline.

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
