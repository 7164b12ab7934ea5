"""The order of a run: every arm decodes a group of prompts before the next group comes.

A group is twice as many prompts as a cell has requests at a time, behind a lead-in. The arms take turns at it, so that
whatever else the machine does hits all of them alike, and times compare pair by pair. Every other group is decoded in
the reverse order; from pair to pair of groups the arm that goes first rotates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.bench.arms import Arm, Cell
from cluster.bench.samples import GroupPrompt, PromptGroup, Sample
from cluster.bench.turns import Lane, decode_in_turns, decode_one_by_one
from cluster.router.timeline import Timeline

_PROMPTS_PER_PLACE = 2


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Everything that a run decodes. Each prompt is decoded once per repeat by each arm of each cell."""

    prompts: tuple[GroupPrompt, ...]
    arms: Mapping[Cell, tuple[Arm, ...]]
    repeats: int
    max_prompts: int | None = None  # of a cell, which decodes at least a group; None: all

    @property
    def num_samples(self) -> int:
        return self.repeats * sum(len(arms) * len(self.groups(cell)) for cell, arms in self.arms.items())

    def groups(self, cell: Cell) -> list[PromptGroup]:
        """What a cell decodes, a group at a time. A single request at a time needs no lead-in."""
        size = 1 if cell.concurrency == 1 else _PROMPTS_PER_PLACE * cell.concurrency
        num_lead_in = 0 if cell.concurrency == 1 else cell.concurrency
        groups = groups_of(self.prompts, size)
        if self.max_prompts is not None:
            groups = groups[: max(1, self.max_prompts // size)]
        return [PromptGroup(tuple(group), _lead_in(group[:num_lead_in])) for group in groups]


def groups_of(prompts: Sequence[GroupPrompt], size: int) -> list[list[GroupPrompt]]:
    """Consecutive groups of `size` prompts. The last one is filled up from the first prompts, with other seeds."""
    num_groups = -(-len(prompts) // size)
    rounds = range(-(-num_groups * size // len(prompts)))
    cycled = [replace(prompt, seed=prompt.seed + turn * len(prompts)) for turn in rounds for prompt in prompts]
    return [cycled[start : start + size] for start in range(0, num_groups * size, size)]


def _lead_in(prompts: Sequence[GroupPrompt]) -> tuple[GroupPrompt, ...]:
    """Of the first an n-th of its tokens is wanted, of the second two n-ths, …: what remains of requests at a moment of
    lasting load."""
    num = len(prompts)
    return tuple(
        replace(prompt, max_tokens=-(-prompt.max_tokens * place // num)) for place, prompt in enumerate(prompts, 1)
    )


def order(arms: tuple[Arm, ...], turn: int) -> tuple[Arm, ...]:
    """Who goes first, second, … in the `turn`-th group of a cell."""
    by = turn // 2 % len(arms)
    rotated = arms[by:] + arms[:by]
    return rotated[::-1] if turn % 2 else rotated


def run(
    plan: RunPlan,
    lanes: Mapping[Arm, Lane],
    has_room_for: Callable[[int, int], bool],
    time_limit_s: float | None = None,
    timeline: Timeline | None = None,
) -> Iterator[Sample]:
    """Yields the samples of a group when all arms have decoded it; after `time_limit_s` begins none but the first.

    `has_room_for` so many sequences of so many tokens each: where the models have none for those of all arms at a time,
    each arm decodes the group to its end before the next one begins. So it is with what the timeline gets, the first
    group of every cell in the last repeat: more of them would be too much to look at.
    """
    begin, is_first = time.monotonic(), True
    for repeat in range(plan.repeats):
        for cell, arms in plan.arms.items():
            groups = plan.groups(cell)
            for group, decoding in enumerate(groups):
                if time_limit_s is not None and not is_first and time.monotonic() - begin >= time_limit_s:
                    return
                is_first = False
                in_order = {arm: lanes[arm] for arm in order(arms, repeat * len(groups) + group)}
                drawn = timeline if group == 0 and repeat == plan.repeats - 1 else None
                num_open, most_tokens = len(arms) * cell.concurrency, max(map(_num_tokens, decoding.prompts))
                if drawn is None and has_room_for(num_open, most_tokens):
                    decoded = decode_in_turns([*in_order.values()], decoding, cell)
                else:
                    decoded = decode_one_by_one(in_order, decoding, cell, drawn)
                for arm, one in zip(in_order, decoded, strict=True):
                    yield Sample(cell, arm, repeat, group, one)


def warm_up(plan: RunPlan, lanes: Mapping[Arm, Lane]) -> Iterator[Arm]:
    """Lets each arm decode the first prompts of each of its cells, unmeasured: compilation, caches, page faults."""
    for cell, arms in plan.arms.items():
        group = PromptGroup(plan.groups(cell)[0].prompts[: cell.concurrency])
        for arm in arms:
            decode_one_by_one({arm: lanes[arm]}, group, cell)
            yield arm


def _num_tokens(prompt: GroupPrompt) -> int:
    return len(prompt.token_ids) + prompt.max_tokens
