"""Priorities, latency classes, displacement, starvation and affinity, through the real router."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.requests import HIGHEST_PRIORITY, LOWEST_PRIORITY, GenerationRequest, LatencyClass, TokenEvent
from dflash_core.errors import InvalidRequest, Overloaded
from tests.cluster.simulated_client import Client
from tests.cluster.simulated_target import SimulatedTarget
from tests.cluster.simulated_text import make_request
from tests.cluster.world import World, make_world


def request_of(world: World, name: str, num_prompt_tokens: int = 9, **changes: object) -> GenerationRequest:
    token_ids = np.asarray([world.rng.randrange(97) for _ in range(num_prompt_tokens)], np.int32)
    values = {"token_ids": token_ids, "num_prompt_tokens": num_prompt_tokens, "max_tokens": 8, "stop_token_ids": ()}
    return make_request(world.rng, name, **{**values, **changes})


def opened(target: SimulatedTarget) -> list[str]:
    prefills = [prefill for request in target.rounds for prefill in request.prefills if prefill.start == 0]
    return [prefill.key.sequence_id.partition(".")[0] for prefill in prefills]


async def test_who_goes_first() -> None:
    """By priority, then by class, then the shorter, then the older."""
    async with make_world(1, max_running=1, queue_ms_per_token=1000) as world:
        target = world.add_target(max_model_len=100)
        wanted = [
            request_of(world, "urgent", 40, priority=-5, latency_class=LatencyClass.BATCH),
            request_of(world, "interactive-short", 9, latency_class=LatencyClass.INTERACTIVE),
            request_of(world, "interactive-long", 40, latency_class=LatencyClass.INTERACTIVE),
            request_of(world, "standard-short", 9),
            request_of(world, "standard-next", 9),
            request_of(world, "standard-long", 40),
            request_of(world, "batch", 9, latency_class=LatencyClass.BATCH),
            request_of(world, "low", 9, priority=1, latency_class=LatencyClass.INTERACTIVE),
        ]
        first = request_of(world, "first")
        world.router.submit(first, world.client)
        shuffled = [wanted[place] for place in (7, 2, 5, 3, 6, 0, 4, 1)]
        for request in shuffled:
            world.router.submit(request, world.client)
        await world.check_same_tokens([first, *wanted])
        assert opened(target) == ["first", *(request.sequence_id for request in wanted)]
        await world.check_nothing_left()


async def test_a_priority_out_of_range_is_refused() -> None:
    async with make_world(2) as world:
        world.add_target()
        for priority in (HIGHEST_PRIORITY, LOWEST_PRIORITY):
            world.router.submit(request_of(world, f"s{priority}", priority=priority), world.client)
        with pytest.raises(InvalidRequest, match=r"-2147483649") as caught:
            world.router.submit(request_of(world, "s", priority=HIGHEST_PRIORITY - 1), world.client)
        assert caught.value.param == "priority"


async def test_in_a_full_queue_the_last_gives_way_to_the_more_urgent() -> None:
    async with make_world(3, max_running=1, max_waiting=2) as world:
        world.add_target()
        requests = [request_of(world, f"s{i}") for i in range(3)]
        for request in requests:
            world.router.submit(request, world.client)
        with pytest.raises(Overloaded, match="2 requests are waiting, the limit is 2") as caught:
            world.router.submit(request_of(world, "equal"), world.client)
        assert caught.value.retry_after_s >= 1.0
        with pytest.raises(Overloaded):
            world.router.submit(request_of(world, "batch", latency_class=LatencyClass.BATCH), world.client)
        urgent = [
            request_of(world, "interactive", latency_class=LatencyClass.INTERACTIVE),
            request_of(world, "high", 50, priority=-1, latency_class=LatencyClass.BATCH),
        ]
        for request, displaced in zip(urgent, ("s2", "s1"), strict=True):
            world.router.submit(request, world.client)
            error = world.client.last[displaced].error
            assert isinstance(error, Overloaded)
            assert error.retry_after_s >= 1.0
            assert "more urgent" in error.message
            assert world.router.num_waiting == 2
        await world.check_same_tokens([requests[0], *urgent])
        await world.check_nothing_left()


async def test_what_another_router_began_goes_before_newcomers_and_takes_their_place() -> None:
    async with make_world(4, max_running=1, max_waiting=2) as world:
        target = world.add_target()
        newcomers = [request_of(world, f"s{i}", priority=-9 * (i > 0)) for i in range(3)]
        for request in newcomers:
            world.router.submit(request, world.client)
        begun = request_of(world, "begun", 12)
        begun = make_request(
            world.rng, "begun", token_ids=begun.token_ids, num_prompt_tokens=9, max_tokens=8, stop_token_ids=()
        )
        world.router.submit(begun, world.client)
        assert isinstance(world.client.last["s2"].error, Overloaded)
        await world.check_same_tokens([newcomers[0], begun, newcomers[1]])
        assert opened(target) == ["s0", "begun", "s1"]


class Flow(Client):
    """Submits the next short one whenever one ends, as long as the long one has not ended."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.num_submitted = 0

    def put(self, events: list[TokenEvent]) -> None:
        super().put(events)
        for event in events:
            if event.is_last and "long" not in self.last:
                self.submit()

    def submit(self) -> None:
        self.num_submitted += 1
        self.world.router.submit(request_of(self.world, f"short{self.num_submitted}"), self)


@pytest.mark.parametrize("queue_ms_per_token", [0.0, 0.05])
@pytest.mark.parametrize("num_targets", [1, 2])
async def test_a_long_one_comes_through_a_flow_of_short_ones(num_targets: int, queue_ms_per_token: float) -> None:
    """It needs nearly all blocks of a target, and there are always more short ones than fit."""
    async with make_world(5, queue_ms_per_token=queue_ms_per_token) as world:
        for _ in range(num_targets):
            world.add_target(num_blocks=25)
        flow = Flow(world)
        for _ in range(16 * num_targets):
            flow.submit()
        assert world.router.num_waiting > 0
        long = request_of(world, "long", 180, max_tokens=8)
        world.router.submit(long, flow)
        await flow.wait("long")
        assert flow.last["long"].error is None
        for sequence_id in [f"short{i}" for i in range(1, flow.num_submitted + 1)]:
            world.router.cancel(sequence_id, flow)
        await world.check_nothing_left()


def where(world: World, name: str) -> int:
    """The one target that saw it."""
    (place,) = [place for place, target in enumerate(world.targets) if name in opened(target)]
    return place


@pytest.mark.parametrize("seed", range(3))
async def test_a_conversation_stays_on_its_target(seed: int) -> None:
    async with make_world(seed) as world:
        for _ in range(3):
            world.add_target()
        history = request_of(world, "t0", 40)
        for turn in range(4):
            name = f"t{turn}"
            others = [request_of(world, f"o{turn}{i}") for i in range(world.rng.randrange(3))]
            for other in others:
                world.router.submit(other, world.client)
            await world.check_same_tokens(others)
            request = request_of(world, name, token_ids=history.token_ids, num_prompt_tokens=len(history.token_ids))
            world.router.submit(request, world.client)
            await world.check_same_tokens([request])
            assert where(world, name) == where(world, "t0")
            if turn:
                first = world.client.first[name]
                assert first.cached_tokens >= 40
            said = world.client.tokens[name]
            token_ids = np.asarray([*request.token_ids, *said, *(world.rng.randrange(97) for _ in range(9))], np.int32)
            history = request_of(world, "next", token_ids=token_ids, num_prompt_tokens=len(token_ids))
        await world.check_nothing_left()


async def test_a_prefix_is_sought_elsewhere_when_its_target_is_lost() -> None:
    async with make_world(6) as world:
        for _ in range(2):
            world.add_target()
        first = request_of(world, "first", 40)
        world.router.submit(first, world.client)
        await world.check_same_tokens([first])
        world.router.remove_target(world.targets[where(world, "first")])
        second = request_of(world, "second", token_ids=first.token_ids, num_prompt_tokens=40)
        world.router.submit(second, world.client)
        await world.check_same_tokens([second])
        assert where(world, "second") != where(world, "first")
