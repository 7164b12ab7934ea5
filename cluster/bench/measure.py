"""The order of a run: every arm decodes a group of prompts before the next group comes.

So whatever else the machine does for a while hits all arms alike, and times compare pair by pair. The arm that goes
first rotates from group to group.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from cluster.bench.arms import Arm, Cell
from cluster.bench.samples import Decoder, GroupPrompt, Sample


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Everything that a run decodes. Each prompt is decoded once per repeat by each arm of each cell."""

    prompts: tuple[GroupPrompt, ...]
    arms: Mapping[Cell, tuple[Arm, ...]]
    repeats: int

    @property
    def num_samples(self) -> int:
        return self.repeats * sum(
            len(arms) * len(groups_of(self.prompts, cell.concurrency)) for cell, arms in self.arms.items()
        )


def groups_of(prompts: Sequence[GroupPrompt], concurrency: int) -> list[list[GroupPrompt]]:
    """Consecutive groups of `concurrency` prompts; the last one may be smaller."""
    return [list(prompts[start : start + concurrency]) for start in range(0, len(prompts), concurrency)]


def rotated(arms: tuple[Arm, ...], by: int) -> tuple[Arm, ...]:
    by %= len(arms)
    return arms[by:] + arms[:by]


async def run(plan: RunPlan, decoders: Mapping[Arm, Decoder]) -> AsyncIterator[Sample]:
    """Yields each sample as it is measured."""
    for repeat in range(plan.repeats):
        for cell, arms in plan.arms.items():
            for group, prompts in enumerate(groups_of(plan.prompts, cell.concurrency)):
                for arm in rotated(arms, group + repeat):
                    decoded = await decoders[arm].decode(prompts, cell.temperature)
                    yield Sample(cell, arm, repeat, group, decoded)


async def warm_up(plan: RunPlan, decoders: Mapping[Arm, Decoder]) -> AsyncIterator[Arm]:
    """Lets each arm decode the first group of each of its cells, unmeasured: compilation, caches, page faults."""
    for cell, arms in plan.arms.items():
        prompts = groups_of(plan.prompts, cell.concurrency)[0]
        for arm in arms:
            await decoders[arm].decode(prompts, cell.temperature)
            yield arm
