"""The router over simulated pools: same tokens whatever happens, and nothing left behind."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from cluster.requests import FinishReason, GenerationRequest, Strategy
from dflash_core.contracts import OutcomeStatus, SamplingParams
from dflash_core.errors import (
    CheckpointMismatch,
    DeadlineExceeded,
    DFlashError,
    InvalidRequest,
    Overloaded,
    PromptTooLong,
    Unavailable,
)
from tests.cluster.simulated_client import Client
from tests.cluster.simulated_drafter import SimulatedDrafter
from tests.cluster.simulated_target import SimulatedTarget
from tests.cluster.simulated_text import decode_plainly, make_request
from tests.cluster.world import make_world
from tests.waiting import until


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("strategy", list(Strategy))
async def test_same_tokens_as_plain_decoding(seed: int, strategy: Strategy) -> None:
    async with make_world(seed, strategy=strategy) as world:
        world.add_target()
        world.add_drafter(skill=world.rng.random())
        requests = [make_request(world.rng, f"s{i}") for i in range(20)]
        for request in requests:
            world.router.submit(request, world.client)
            if world.rng.random() < 0.3:
                await asyncio.sleep(0)
        await world.check_same_tokens(requests)
        await world.check_nothing_left()
        if strategy is Strategy.NONE:
            assert world.drafters[0].num_drafts == 0


@pytest.mark.parametrize("seed", range(8))
async def test_same_tokens_when_everything_goes_wrong(seed: int) -> None:
    """Late, lost and reordered features, stragglers, dying drafters and targets, cancellations, odd outcomes, and
    pools that may be too small for the sequences that run."""
    async with make_world(seed, drop=0.1, delay_s=0.002, draft_timeout_ms=3, max_retries=1000) as world:
        rng = world.rng

        def add_target() -> SimulatedTarget:
            return world.add_target(delay_s=0.001, num_blocks=rng.randint(16, 48), forget=0.01)

        def add_drafter() -> SimulatedDrafter:
            return world.add_drafter(delay_s=0.002, straggle=0.02, skill=rng.random())

        add_target()
        add_drafter()
        requests = [make_request(rng, f"s{i}") for i in range(30)]
        cancelled: set[str] = set()
        for request in requests:
            world.router.submit(request, world.client)
            await asyncio.sleep(rng.random() * 0.004)
            roll = rng.random()
            if roll < 0.1:
                rng.choice([t for t in world.targets if not t.is_dead]).is_dead = True
                add_target()
            elif roll < 0.2:
                rng.choice([d for d in world.drafters if not d.is_dead]).is_dead = True
                add_drafter()
            elif roll < 0.3:
                odd = (OutcomeStatus.UNKNOWN_SEQUENCE, OutcomeStatus.STALE_ATTEMPT, OutcomeStatus.MISMATCH)
                status = rng.choice(odd)
                world.targets[-1].status_next.append(status)
            elif roll < 0.35:
                world.targets[-1].fail_next.append(RuntimeError("a kernel failed"))
            elif roll < 0.45:
                victim = rng.choice(requests).sequence_id
                if victim in world.client.tokens and victim not in world.client.last:
                    world.router.cancel(victim, world.client)
                    cancelled.add(victim)
            elif roll < 0.55:
                add_drafter()
        await world.check_same_tokens([r for r in requests if r.sequence_id not in cancelled])
        assert not cancelled & set(world.client.last)
        for target in world.targets:
            target.status_next.clear()
        await world.check_nothing_left()


async def test_speculation_takes_fewer_rounds_and_shares_the_budget() -> None:
    async with make_world(1) as world:
        world.add_target()
        world.add_drafter(skill=1.0)
        requests = [
            make_request(world.rng, f"s{i}", max_tokens=40, stop_token_ids=(), tree_budget=None) for i in range(4)
        ]
        for request in requests:
            world.router.submit(request, world.client)
        await world.check_same_tokens(requests)
        for request in requests:
            statistics = world.client.last[request.sequence_id].statistics
            assert statistics is not None
            assert statistics.rounds <= 1 + 39 / 4
            assert statistics.accepted_tokens + statistics.rounds == 40
        nodes = [[tree.tree.num_nodes for tree in request.trees] for request in world.targets[0].rounds]
        assert max(sum(row) for row in nodes) <= 4 * 8
        timings = world.router.timings
        assert timings.rounds == len([r for r in world.targets[0].rounds if r.trees or r.prefills])
        assert {"router.plan", "router.commit", "round.verify", "round.draft", "target.forward"} <= set(timings.stages)


async def test_a_request_s_own_budget_is_its_limit() -> None:
    async with make_world(2) as world:
        world.add_target()
        world.add_drafter(skill=0.5)
        for budget in (0, 1, 3):
            request = make_request(world.rng, f"s{budget}", tree_budget=budget, max_tokens=30)
            world.targets[0].rounds.clear()
            world.router.submit(request, world.client)
            await world.check_same_tokens([request])
            nodes = [tree.tree.num_nodes for r in world.targets[0].rounds for tree in r.trees]
            assert max(nodes) == budget


async def test_a_chain_is_one_path() -> None:
    async with make_world(3, strategy=Strategy.CHAIN) as world:
        world.add_target()
        world.add_drafter()
        request = make_request(world.rng, "s", max_tokens=40, stop_token_ids=())
        world.router.submit(request, world.client)
        await world.check_same_tokens([request])
        for round_request in world.targets[0].rounds:
            for tree in round_request.trees:
                assert tree.tree.depths.tolist() == list(range(tree.tree.num_rows))


async def test_depth_is_capped_at_the_tokens_still_wanted() -> None:
    async with make_world(4) as world:
        world.add_target()
        world.add_drafter(skill=1.0)
        request = make_request(world.rng, "s", max_tokens=9, stop_token_ids=(), tree_budget=30)
        world.router.submit(request, world.client)
        await world.check_same_tokens([request])
        end = request.num_prompt_tokens + 9
        for round_request in world.targets[0].rounds:
            for tree in round_request.trees:
                assert tree.root_position + tree.tree.depths.max() + 1 < end


async def test_prompts_are_prefilled_in_chunks_first_come_first_served() -> None:
    async with make_world(5, prefill_chunk_tokens=10) as world:
        target = world.add_target(prefix_caching=False)
        requests = [
            make_request(world.rng, f"s{i}", token_ids=np.arange(25, dtype=np.int32), num_prompt_tokens=25)
            for i in range(2)
        ]
        for request in requests:
            world.router.submit(request, world.client)
        await world.check_same_tokens(requests)
        chunks = [[(p.key.sequence_id[:2], p.start, len(p.token_ids)) for p in r.prefills] for r in target.rounds]
        assert [c for c in chunks if c] == [
            [("s0", 0, 10)],
            [("s0", 10, 10)],
            [("s0", 20, 5), ("s1", 0, 5)],
            [("s1", 5, 10)],
            [("s1", 15, 10)],
        ]


async def test_refusals_name_both_values() -> None:
    async with make_world(7, max_waiting=2) as world:
        good = make_request(world.rng, "s", max_tokens=10)
        with pytest.raises(Unavailable, match="no target"):
            world.router.submit(good, world.client)
        world.add_target(num_blocks=10, kv_block_size=8, max_model_len=100)

        def refused(error: type[DFlashError], match: str, **changes: Any) -> None:
            with pytest.raises(error, match=match):
                world.router.submit(make_request(world.rng, "r", **{"max_tokens": 5, **changes}), world.client)

        long = np.zeros(90, np.int32)
        refused(PromptTooLong, "95, more than the KV cache of 80", token_ids=long, num_prompt_tokens=90)
        long = np.zeros(99, np.int32)
        refused(PromptTooLong, "104, more than the model's context of 100", token_ids=long, num_prompt_tokens=99)
        refused(InvalidRequest, "at least one token", token_ids=np.empty(0, np.int32), num_prompt_tokens=0)
        refused(
            InvalidRequest,
            "token id 97 is outside the vocabulary of 97",
            token_ids=np.asarray([97], np.int32),
            num_prompt_tokens=1,
        )
        refused(InvalidRequest, "token id -1 is", token_ids=np.asarray([-1], np.int32), num_prompt_tokens=1)
        refused(InvalidRequest, "max_tokens must be at least 1, got 0", max_tokens=0)
        refused(
            InvalidRequest, "num_prompt_tokens is 3, but only 2", token_ids=np.zeros(2, np.int32), num_prompt_tokens=3
        )
        refused(InvalidRequest, "6 tokens were received", token_ids=np.zeros(7, np.int32), num_prompt_tokens=1)
        refused(InvalidRequest, "got -1", tree_budget=-1)
        big = np.zeros(50, np.int32)
        for i in range(3):
            world.router.submit(
                make_request(world.rng, f"b{i}", token_ids=big, num_prompt_tokens=50, max_tokens=20), world.client
            )
        with pytest.raises(InvalidRequest, match="already running"):
            world.router.submit(make_request(world.rng, "b1"), world.client)
        refused(Overloaded, "2 requests are waiting, the limit is 2")


async def test_cancel_frees_everything_within_one_round() -> None:
    async with make_world(8) as world:
        target = world.add_target(delay_s=0.002)
        drafter = world.add_drafter(delay_s=0.002)
        for i in range(50):
            request = make_request(world.rng, f"s{i}", max_tokens=60, stop_token_ids=())
            world.router.submit(request, world.client)
            await asyncio.sleep(world.rng.random() * 0.01)
            world.router.cancel(request.sequence_id, world.client)
            num_rounds = len(target.rounds)
            await until(lambda: not target.held and not drafter.contexts)
            # At most the round that runs, and the one that carries the release.
            assert len(target.rounds) <= num_rounds + 2
        assert not world.client.last
        await world.check_nothing_left()


async def test_a_client_that_is_gone_takes_its_sequences_with_it() -> None:
    async with make_world(9) as world:
        world.add_target()
        world.add_drafter()
        other = Client()
        request = make_request(world.rng, "same-id", max_tokens=60)
        for i in range(5):
            world.router.submit(make_request(world.rng, f"s{i}", max_tokens=60), other)
        world.router.submit(make_request(world.rng, "same-id"), other)
        world.router.submit(request, world.client)
        world.router.release_client(other)
        await world.check_same_tokens([request])
        assert not other.last
        await world.check_nothing_left()


async def test_a_deadline_ends_a_request_even_while_its_target_hangs() -> None:
    async with make_world(10) as world:
        world.add_target(delay_s=100.0)
        world.router.submit(make_request(world.rng, "s", timeout_ms=20), world.client)
        await world.client.wait("s")
        error = world.client.last["s"].error
        assert isinstance(error, DeadlineExceeded)
        assert "20" in error.message


async def test_sequences_wait_for_a_target_to_come_back() -> None:
    async with make_world(11, failover_timeout_s=5.0) as world:
        target = world.add_target(delay_s=0.002)
        world.add_drafter()
        requests = [make_request(world.rng, f"s{i}", max_tokens=50, stop_token_ids=()) for i in range(4)]
        for request in requests:
            world.router.submit(request, world.client)
        await until(lambda: world.client.tokens)
        target.is_dead = True
        await until(lambda: not world.router.is_ready)
        with pytest.raises(Unavailable):
            world.router.submit(make_request(world.rng, "late"), world.client)
        await asyncio.sleep(0.01)
        second = world.add_target()
        await world.check_same_tokens(requests)
        assert all(p.key.attempt == 2 for r in second.rounds for p in r.prefills)
        await world.check_nothing_left()


async def test_no_target_comes_back() -> None:
    async with make_world(12, failover_timeout_s=0.05) as world:
        target = world.add_target()
        drafter = world.add_drafter()
        world.router.submit(make_request(world.rng, "s", max_tokens=60, stop_token_ids=()), world.client)
        await asyncio.sleep(0.001)
        world.router.remove_target(target, "it was unplugged")
        await world.client.wait("s")
        error = world.client.last["s"].error
        assert isinstance(error, Unavailable)
        assert "it was unplugged" in error.message
        assert "0.05" in error.message
        await asyncio.sleep(0.001)
        assert not drafter.contexts


async def test_a_longer_target_lost_does_not_hold_up_what_fits_the_shorter() -> None:
    async with make_world(13, failover_timeout_s=0.1) as world:
        long_target = world.add_target(delay_s=0.002, num_blocks=25)
        long = make_request(world.rng, "long", max_tokens=100, stop_token_ids=(), tree_budget=0)
        world.router.submit(long, world.client)
        world.add_target(max_model_len=100)
        world.router.remove_target(long_target)
        short = make_request(world.rng, "short", max_tokens=10, token_ids=np.zeros(3, np.int32), num_prompt_tokens=3)
        world.router.submit(short, world.client)
        await world.check_same_tokens([short])
        if long.num_prompt_tokens + 100 > 100:
            await world.client.wait("long")
            assert isinstance(world.client.last["long"].error, Unavailable)


async def test_retries_are_bounded() -> None:
    async with make_world(14, max_retries=3) as world:
        target = world.add_target()
        target.fail_next = [RuntimeError("broken for good")] * 100
        world.router.submit(make_request(world.rng, "s"), world.client)
        await world.client.wait("s")
        error = world.client.last["s"].error
        assert isinstance(error, Unavailable)
        assert "3 retries" in error.message
        assert "broken for good" in error.message
        assert len(target.fail_next) == 96
        target.fail_next.clear()
        await world.check_nothing_left()


async def test_invalid_outcomes_fail_one_request_alone() -> None:
    async with make_world(15) as world:
        target = world.add_target()
        requests = [make_request(world.rng, f"s{i}", max_tokens=20) for i in range(3)]
        target.status_next = [OutcomeStatus.INVALID]
        for request in requests:
            world.router.submit(request, world.client)
        await world.client.wait("s0")
        assert isinstance(world.client.last["s0"].error, InvalidRequest)
        await world.check_same_tokens(requests[1:])
        await world.check_nothing_left()


async def test_pairs_are_checked() -> None:
    async with make_world(16) as world:
        world.add_target(fc="abc")
        with pytest.raises(CheckpointMismatch, match=r"'def'.*'abc'"):
            world.add_drafter(fingerprint="def")
        other = SimulatedTarget(world.network)
        object.__setattr__(other.info, "fingerprint", "otherweights:abc")
        with pytest.raises(CheckpointMismatch, match="otherweights"):
            world.router.add_target(other)


async def test_the_context_of_a_drafter_is_refilled_after_losses() -> None:
    """A lost feature costs a few rounds without a draft, not the rest of the sequence."""
    async with make_world(17, drop=0.15) as world:
        world.add_target()
        drafter = world.add_drafter(skill=1.0)
        requests = [
            make_request(world.rng, f"s{i}", max_tokens=120, stop_token_ids=(), tree_budget=7) for i in range(6)
        ]
        for request in requests:
            world.router.submit(request, world.client)
        await world.check_same_tokens(requests)
        assert drafter.num_missing > 0
        num_rounds = 0
        for request in requests:
            statistics = world.client.last[request.sequence_id].statistics
            assert statistics is not None
            num_rounds += statistics.rounds
        assert 6 * 120 / num_rounds > 2.5  # 4.8 without losses


async def test_what_was_received_already_is_not_sent_again() -> None:
    async with make_world(18) as world:
        world.add_target()
        prompt = np.arange(5, dtype=np.int32)
        whole = GenerationRequest("whole", prompt, 5, 12, SamplingParams(seed=9))
        expected = decode_plainly(whole)
        for received in (1, 7, 12):
            request = GenerationRequest(
                f"part{received}", np.asarray([*prompt, *expected[:received]], np.int32), 5, 12, SamplingParams(seed=9)
            )
            world.router.submit(request, world.client)
            await world.client.wait(request.sequence_id)
            assert world.client.tokens[request.sequence_id] == expected[received:]
        stopped = GenerationRequest(
            "stopped", np.asarray([*prompt, *expected[:3]], np.int32), 5, 12, SamplingParams(seed=9), (expected[2],)
        )
        world.router.submit(stopped, world.client)
        assert world.client.last["stopped"].finish_reason is FinishReason.STOP


async def test_requests_are_spread_over_targets_and_drafters() -> None:
    async with make_world(19) as world:
        for _ in range(2):
            world.add_target()
            world.add_drafter()
        requests = [make_request(world.rng, f"s{i}", tree_budget=5, max_tokens=30) for i in range(8)]
        for request in requests:
            world.router.submit(request, world.client)
        assert [len(link.sequences) for link in world.router._targets.values()] == [4, 4]
        await world.check_same_tokens(requests)
        assert all(drafter.num_drafts > 10 for drafter in world.drafters)
        await world.check_nothing_left()
