"""More requests than blocks: admission hopes for the best, preemption mends it, and clients see nothing but a pause."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.requests import GenerationRequest
from dflash_core.contracts import OutcomeStatus, RoundRequest, RoundResult, SamplingParams, SequenceKey
from dflash_core.errors import PromptTooLong, Unavailable
from dflash_core.runners.drafter import DrafterRunner
from dflash_core.runners.target import TargetRunner
from tests.cluster.serving import (
    DRAFTER_SETTINGS,
    TARGET_SETTINGS,
    add_models,
    check_outputs,
    decode_plainly,
    make_cluster,
)
from tests.cluster.simulated_target import SimulatedTarget
from tests.cluster.simulated_text import make_request
from tests.cluster.world import World, make_world
from tests.tiny import TinyPair, make_tiny_pair
from tests.waiting import until


def long_request(world: World, name: str, num_prompt_tokens: int, max_tokens: int) -> GenerationRequest:
    prompt = np.asarray([world.rng.randrange(97) for _ in range(num_prompt_tokens)], np.int32)
    return make_request(
        world.rng,
        name,
        token_ids=prompt,
        num_prompt_tokens=num_prompt_tokens,
        max_tokens=max_tokens,
        stop_token_ids=(),
    )


def first_chunks(target: SimulatedTarget) -> list[tuple[str, int]]:
    """(name, attempt) in the order in which they were opened."""
    prefills = [prefill for request in target.rounds for prefill in request.prefills if prefill.start == 0]
    return [(prefill.key.sequence_id.partition(".")[0], prefill.key.attempt) for prefill in prefills]


# --- over simulated pools


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("prefix_caching", [True, False])
async def test_same_tokens_in_a_pool_far_too_small(seed: int, prefix_caching: bool) -> None:
    """Preemption is no fault: not one retry is allowed here."""
    async with make_world(seed, max_retries=0) as world:
        world.add_target(num_blocks=15, prefix_caching=prefix_caching, forget=0.01)
        world.add_drafter(skill=0.8)
        requests = [
            long_request(world, f"s{i}", world.rng.randint(1, 20), world.rng.randint(30, 90)) for i in range(24)
        ]
        for request in requests:
            world.router.submit(request, world.client)
        await world.check_same_tokens(requests)
        assert world.router.timings.preemptions > 3
        await world.check_nothing_left()


async def test_sequences_join_while_there_is_room_for_their_prompts() -> None:
    """Four blocks each: three for the prompt, one to write on. All five could come to need 25."""
    async with make_world(1) as world:
        target = world.add_target(num_blocks=17, kv_block_size=8)
        requests = [long_request(world, f"s{i}", 20, 20) for i in range(5)]
        for request in requests:
            world.router.submit(request, world.client)
        assert (world.router.num_running, world.router.num_waiting) == (4, 1)
        await world.check_same_tokens(requests)
        assert max(len(r.trees) + len(r.prefills) for r in target.rounds) == 4
        await world.check_nothing_left()


async def test_what_will_never_be_written_is_not_claimed() -> None:
    """One more token fits the third block of each: twice three blocks, where with a spare one it would be eight."""
    async with make_world(2) as world:
        world.add_target(num_blocks=6, kv_block_size=8)
        requests = [long_request(world, f"s{i}", 20, 4) for i in range(3)]
        for request in requests:
            world.router.submit(request, world.client)
        assert (world.router.num_running, world.router.num_waiting) == (2, 1)
        await world.check_same_tokens(requests)
        assert world.router.timings.preemptions == 0


async def test_an_empty_target_takes_whatever_fits_it() -> None:
    """Even where nothing is left to write on: nobody claims what it can never come to need."""
    async with make_world(3, queue_ms_per_token=0) as world:
        world.add_target(num_blocks=10, kv_block_size=8)
        requests = [long_request(world, "small", 9, 5), long_request(world, "whole", 79, 1)]
        requests += [long_request(world, f"s{i}", 9, 20) for i in range(3)]
        for request in requests:
            world.router.submit(request, world.client)
        await world.check_same_tokens(requests)
        # Nobody behind it overtakes the one that waits for all the blocks.
        assert [name for name, _ in first_chunks(world.targets[0])][:3] == ["small", "whole", "s0"]
        await world.check_nothing_left()


async def test_the_preempted_come_back_before_all_others_in_their_old_order() -> None:
    async with make_world(4) as world:
        target = world.add_target(num_blocks=12, kv_block_size=8, max_model_len=96)
        requests = [long_request(world, f"s{i}", 9, 60) for i in range(8)]
        for request in requests:
            world.router.submit(request, world.client)
        await world.check_same_tokens(requests)
        opened = first_chunks(target)
        assert [name for name, attempt in opened if attempt == 1] == [f"s{i}" for i in range(8)]
        assert world.router.timings.preemptions == len(opened) - 8 > 3
        # Whoever comes back is older than all that were ever opened after it, but for those that came back themselves.
        for place, (name, attempt) in enumerate(opened):
            if attempt > 1:
                later = [other for other, other_attempt in opened[place + 1 :] if other_attempt == 1]
                assert all(name < other for other in later)
        assert list(world.client.last) == [f"s{i}" for i in range(8)]  # nobody ends before one that came before
        await world.check_nothing_left()


async def test_of_several_preempted_in_one_round_the_first_comes_back_first() -> None:
    """s0 and s1 grow by a block a round, and need s3's and s2's, who have one each."""
    preempted: list[list[str]] = []

    class WatchedTarget(SimulatedTarget):
        def _run(self, request: RoundRequest) -> RoundResult:
            result = super()._run(request)
            if result.preempted:
                preempted.append([key.sequence_id[:2] for key in result.preempted])
            return result

    async with make_world(5, prefill_chunk_tokens=100) as world:
        target = WatchedTarget(world.network, num_blocks=10, kv_block_size=8, max_rows=120, max_tree_rows=80)
        world.targets.append(target)
        world.router.add_target(target)
        world.add_drafter(skill=1.0)
        requests = [replace(long_request(world, f"s{i}", 23, 50), tree_budget=30) for i in (0, 1)]
        requests += [replace(long_request(world, f"s{i}", 1, 7), tree_budget=0) for i in (2, 3)]
        for request in requests:
            world.router.submit(request, world.client)
        assert world.router.num_running == 4
        await world.check_same_tokens(requests)
        assert preempted[0] == ["s3", "s2"]
        opened = first_chunks(target)
        assert opened.index(("s2", 2)) < opened.index(("s3", 2))
        await world.check_nothing_left()


async def test_a_finished_sequence_s_blocks_go_to_the_next_in_the_very_next_round() -> None:
    """The round that frees them opens it: the router need not hear of them first. Of two micro-batches that were a
    matter of which one the next is dealt to."""
    async with make_world(6, strategy="none", micro_batches=1) as world:
        target = world.add_target(num_blocks=10, kv_block_size=8, prefix_caching=False)
        requests = [long_request(world, "longest", 20, 30), long_request(world, "first", 20, 12)]
        requests.append(long_request(world, "second", 20, 12))
        for request in requests:
            world.router.submit(request, world.client)
        assert (world.router.num_running, world.router.num_waiting) == (2, 1)
        await world.check_same_tokens(requests)
        (releasing,) = [r for r in target.rounds if any(key.sequence_id.startswith("first") for key in r.releases)]
        assert [prefill.key.sequence_id[:6] for prefill in releasing.prefills] == ["second"]
        assert world.router.timings.preemptions == 0


async def test_the_router_s_order_is_the_one_in_which_the_target_opened() -> None:
    """Whoever is prefilled again is the youngest there, hence here: else it would be fed first, and preempted first."""

    orders: list[tuple[list[str], list[str]]] = []

    class WatchedTarget(SimulatedTarget):
        def _run(self, request: RoundRequest) -> RoundResult:
            self.status_next = [OutcomeStatus.MISMATCH] if world.rng.random() < 0.2 else []
            result = super()._run(request)
            (link,) = world.router._targets.values()
            ours = [s.key.sequence_id for s in link.sequences if self.holds(s.key)]
            orders.append((ours, [name for name in self.held if name in ours]))
            return result

        def holds(self, key: SequenceKey) -> bool:
            return key.sequence_id in self.held and self.held[key.sequence_id].key == key

    async with make_world(7, max_retries=100) as world:
        target = WatchedTarget(world.network, num_blocks=40)
        world.targets.append(target)
        world.router.add_target(target)
        requests = [long_request(world, f"s{i}", 9, 40) for i in range(6)]
        for request in requests:
            world.router.submit(request, world.client)
        await world.check_same_tokens(requests)
        assert sum(attempt > 1 for _, attempt in first_chunks(target)) > 3
        assert all(ours == theirs for ours, theirs in orders)
        await world.check_nothing_left()


async def test_the_preempted_go_to_another_target_where_there_is_room() -> None:
    async with make_world(8, max_retries=0) as world:
        small, large = world.add_target(num_blocks=10), world.add_target(num_blocks=10)
        requests = [long_request(world, f"s{i}", 9, 65) for i in range(4)]
        for request in requests:
            world.router.submit(request, world.client)
        large_blocker = world.router._targets[large]
        large_blocker.max_running = 1  # so that the other one gets three, which it cannot hold
        await world.check_same_tokens(requests)
        assert world.router.timings.preemptions > 0
        await world.check_nothing_left()
        assert small.rounds
        assert large.rounds


async def test_what_fits_no_empty_target_is_refused_with_both_numbers() -> None:
    """Though its prompt would fit: admission hopes, but not for the impossible."""
    async with make_world(7) as world:
        world.add_target(num_blocks=10, kv_block_size=8)
        with pytest.raises(PromptTooLong, match=r"prompt \(20 tokens\) and max_tokens \(61\) make 81, .* of 80 tokens"):
            world.router.submit(long_request(world, "s", 20, 61), world.client)
        request = long_request(world, "s", 20, 60)
        world.router.submit(request, world.client)
        await world.check_same_tokens([request])


def _all_out_of_blocks(result: RoundResult) -> RoundResult:
    outcomes = tuple(
        outcome._replace(status=OutcomeStatus.OUT_OF_BLOCKS, bonus_token=-1) for outcome in result.outcomes
    )
    return replace(result, outcomes=outcomes, preempted=tuple(outcome.key for outcome in outcomes))


def _out_of_blocks_untold(result: RoundResult) -> RoundResult:
    return replace(_all_out_of_blocks(result), preempted=())


def _preempted_and_fine(result: RoundResult) -> RoundResult:
    return replace(result, preempted=tuple(outcome.key for outcome in result.outcomes))


@pytest.mark.parametrize(
    ("corrupt", "reason"),
    [
        (_all_out_of_blocks, "nobody can go on"),
        (_out_of_blocks_untold, r"are out of blocks, \[\] preempted"),
        (_preempted_and_fine, r"\[\] are out of blocks, \[.*'s\..*\] preempted"),
    ],
)
async def test_a_target_that_preempts_against_the_rules_is_a_fault(
    corrupt: Callable[[RoundResult], RoundResult], reason: str
) -> None:
    """Bounded by max_retries: else a broken target would keep a request for ever."""

    class OddTarget(SimulatedTarget):
        def _run(self, request: RoundRequest) -> RoundResult:
            result = super()._run(request)
            return corrupt(result) if result.outcomes else result

    async with make_world(8, max_retries=3) as world:
        world.router.add_target(OddTarget(world.network))
        world.router.submit(long_request(world, "s", 9, 5), world.client)
        await world.client.wait("s")
        error = world.client.last["s"].error
        assert isinstance(error, Unavailable)
        with pytest.raises(Unavailable, match=f"3 retries.*{reason}"):
            raise error


async def test_who_is_cancelled_while_it_is_preempted_is_gone() -> None:
    async with make_world(9) as world:
        world.add_target(num_blocks=12, kv_block_size=8, delay_s=0.001)
        world.add_drafter()
        requests = [long_request(world, f"s{i}", 9, 60) for i in range(6)]
        for request in requests:
            world.router.submit(request, world.client)

        def preempted() -> list[str]:
            return [s.request.sequence_id for s in world.router._waiting if s.key.attempt > 1]

        await until(preempted)
        cancelled = preempted()
        for sequence_id in cancelled:
            world.router.cancel(sequence_id, world.client)
        await world.check_same_tokens([request for request in requests if request.sequence_id not in cancelled])
        assert not set(cancelled) & set(world.client.last)
        await world.check_nothing_left()


# --- over real models

# 12 blocks of 16 for sequences of up to 160 tokens.
SMALL = TARGET_SETTINGS.model_copy(update={"num_blocks": 12, "max_model_len": 160})


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return make_tiny_pair(Path(tmp_path_factory.mktemp("pair")), num_layers=2, target_layer_ids=(0, 1))


def tiny_requests(pair: TinyPair, seed: int, number: int) -> list[GenerationRequest]:
    """Half of them with a common beginning."""
    rng = random.Random(seed)
    stem = [rng.randrange(pair.settings.vocab_size) for _ in range(20)]
    requests = []
    for i in range(number):
        own = [rng.randrange(pair.settings.vocab_size) for _ in range(rng.randint(1, 15))]
        prompt = [*stem, *own] if i % 2 else own
        values: dict[str, Any] = {
            "token_ids": np.asarray(prompt, np.int32),
            "num_prompt_tokens": len(prompt),
            "max_tokens": rng.randint(50, 110),
            "sampling": SamplingParams(temperature=rng.choice([0.0, 0.7, 1.0]), seed=rng.randrange(2**64)),
            "tree_budget": rng.choice([None, 0, 7, 32]),
        }
        requests.append(GenerationRequest(f"r{i}", **values))
    return requests


@pytest.mark.parametrize("prefix_caching", [True, False])
async def test_real_models_give_the_tokens_of_plain_decoding(pair: TinyPair, prefix_caching: bool) -> None:
    requests = tiny_requests(pair, 1, 12)
    plain = TARGET_SETTINGS.model_copy(update={"prefix_caching": False})
    expected = await decode_plainly(TargetRunner.load(str(pair.target), None, plain), requests)
    settings = SMALL.model_copy(update={"prefix_caching": prefix_caching})
    runner = TargetRunner.load(str(pair.target), str(pair.drafter), settings)
    drafter = DrafterRunner.load(str(pair.drafter), str(pair.target), DRAFTER_SETTINGS)
    async with make_world(1, draft_timeout_ms=60_000, tree_budget=12, max_retries=0) as world:
        with ThreadPoolExecutor(max_workers=1) as executor:
            add_models(world.router, runner, drafter, executor)
            for request in requests:
                world.router.submit(request, world.client)
            await check_outputs(world.client, expected)
            await until(lambda: not runner.num_sequences and not drafter.num_sequences)
            await world.router.close()
    timings = world.router.timings
    assert timings.preemptions > 3
    assert (timings.hit_tokens > 0) == prefix_caching
    statistics = [world.client.last[request.sequence_id].statistics for request in requests]
    assert sum(one.accepted_tokens for one in statistics if one is not None) > 20
    assert runner.free_blocks == 12
    assert runner._sequences.blocks._num_holders == [0] * 12


async def test_over_sockets(pair: TinyPair) -> None:
    requests = tiny_requests(pair, 2, 10)
    expected = await decode_plainly(TargetRunner.load(str(pair.target), None, TARGET_SETTINGS), requests)
    async with make_cluster(pair, target_settings=SMALL, max_retries=0) as cluster:
        for request in requests:
            cluster.pool.submit(request, cluster.client)
        await check_outputs(cluster.client, expected)
        assert cluster.routers[0].router.timings.preemptions > 3
        await cluster.check_nothing_left()
