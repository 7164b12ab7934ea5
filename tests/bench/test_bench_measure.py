"""The order of a run: who decodes which group when, and what the groups hold."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.bench.arms import HUGGING_FACE, PLAIN, Arm, ArmKind, Cell
from cluster.bench.measure import RunPlan, groups_of, run
from cluster.bench.samples import Decoded, GroupPrompt, PromptGroup
from cluster.bench.turns import Gate, Lane, StandingLoop
from cluster.router.timeline import Timeline

CELL = Cell(temperature=0.0, concurrency=1)
TREE = Arm(ArmKind.TREE, 8)


def test_a_lead_in_ends_evenly_and_a_single_request_needs_none() -> None:
    prompts = tuple(GroupPrompt((1,), 10, seed) for seed in range(12))
    plan = RunPlan(prompts, {}, repeats=1)
    (group,) = plan.groups(Cell(0.0, 4))[:1]
    assert [(prompt.seed, prompt.max_tokens) for prompt in group.lead_in] == [(0, 3), (1, 5), (2, 8), (3, 10)]
    assert [(prompt.seed, prompt.max_tokens) for prompt in group.prompts] == [(seed, 10) for seed in range(8)]
    assert {group.lead_in for group in plan.groups(Cell(0.0, 1))} == {()}


class _Recorder:
    num_tokens = 0

    def __init__(self, name: str, calls: list[tuple[str, int]]) -> None:
        self._name, self._calls = name, calls

    async def decode(self, group: PromptGroup, cell: Cell, timeline: Timeline | None) -> Decoded:
        self._calls.append((self._name, group.prompts[0].seed))
        return Decoded(1.0, 1, tuple((0,) for _ in group.prompts))


@pytest.fixture
def calls() -> list[tuple[str, int]]:
    return []


@pytest.fixture
def lanes(calls: list[tuple[str, int]]) -> Iterator[dict[Arm, Lane]]:
    found = {arm: Lane(StandingLoop(), Gate(), _Recorder(arm.name, calls), ()) for arm in (HUGGING_FACE, PLAIN, TREE)}
    yield found
    for lane in found.values():
        lane.close()


def _has_room(num_sequences: int, num_tokens: int) -> bool:
    return True


@pytest.mark.parametrize(
    ("max_prompts", "time_limit_s", "groups"), [(2, None, 2), (None, 0.0, 1), (None, 60.0, 3), (1, None, 1)]
)
def test_a_cell_decodes_fewer_groups_where_it_is_told_to(
    max_prompts: int | None, time_limit_s: float | None, groups: int, lanes: dict[Arm, Lane]
) -> None:
    prompts = tuple(GroupPrompt((1,), 4, seed) for seed in range(3))
    arms = (HUGGING_FACE, PLAIN)
    plan = RunPlan(prompts, {Cell(0.0, 1): arms}, repeats=1, max_prompts=max_prompts)
    samples = [*run(plan, lanes, _has_room, time_limit_s)]
    assert len(samples) == len(arms) * groups
    assert {sample.group for sample in samples} == set(range(groups))


@pytest.mark.parametrize("has_room", [True, False])
def test_every_arm_decodes_a_group_before_the_next_group_comes(
    has_room: bool, calls: list[tuple[str, int]], lanes: dict[Arm, Lane]
) -> None:
    arms, asked = (PLAIN, TREE), []

    def has_room_for(num_sequences: int, num_tokens: int) -> bool:
        asked.append((num_sequences, num_tokens))
        return has_room

    prompts = tuple(GroupPrompt((1,), 4, seed) for seed in range(6))
    plan = RunPlan(prompts, {Cell(0.0, 2): arms}, repeats=2)
    samples = [*run(plan, lanes, has_room_for)]
    assert len(samples) == plan.num_samples == 8
    assert set(asked) == {(4, 5)}  # two requests of each arm, of five tokens each
    # Forwards, backwards; then another arm is first. Both decode a group next to each other.
    assert calls == [
        ("plain", 0), ("tree 8", 0), ("tree 8", 4), ("plain", 4),
        ("tree 8", 0), ("plain", 0), ("plain", 4), ("tree 8", 4),
    ]  # fmt: skip


def test_a_cell_decodes_a_group_at_least() -> None:
    prompts = tuple(GroupPrompt((1,), 4, seed) for seed in range(12))
    plan = RunPlan(prompts, {}, repeats=1, max_prompts=4)
    assert [len(plan.groups(Cell(0.0, concurrency))) for concurrency in (1, 2, 3, 8, 16)] == [4, 1, 1, 1, 1]


def test_a_group_is_filled_up_with_the_first_prompts_at_other_seeds() -> None:
    prompts = tuple(GroupPrompt((index,), 4, index) for index in range(3))
    groups = groups_of(prompts, 4)
    assert [[(prompt.token_ids[0], prompt.seed) for prompt in group] for group in groups] == [
        [(0, 0), (1, 1), (2, 2), (0, 3)]
    ]
    assert [len(group) for group in groups_of(prompts, 2)] == [2, 2]
    assert len(groups_of(prompts, 8)[0]) == 8


def test_the_timeline_gets_the_first_group_of_the_last_repeat(lanes: dict[Arm, Lane]) -> None:
    plan = RunPlan(tuple(GroupPrompt((1,), 4, seed) for seed in range(3)), {CELL: (PLAIN, TREE)}, repeats=2)
    timeline = Timeline()
    assert len([*run(plan, lanes, _has_room, None, timeline)]) == plan.num_samples
    spans = [event for event in timeline.as_chrome_trace()["traceEvents"] if event["ph"] == "X"]
    assert [span["name"] for span in spans] == ["plain", "tree 8"]
    assert spans[0]["args"] == {"temperature": 0.0, "concurrency": 1}
