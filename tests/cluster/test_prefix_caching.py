"""Prefix caching as the router sees it: chunks are skipped, drafters lose nothing, clients hear of it once."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.requests import GenerationRequest
from dflash_core.contracts import Outcome, Prefill, SamplingParams
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
from tests.cluster.world import make_world
from tests.tiny import TinyPair, make_tiny_pair
from tests.waiting import until

PLAIN_SETTINGS = TARGET_SETTINGS.model_copy(update={"prefix_caching": False})


def prompt_of(*token_ids: int) -> dict[str, Any]:
    return {"token_ids": np.asarray(token_ids, np.int32), "num_prompt_tokens": len(token_ids)}


def branching_prompts(rng: random.Random, number: int, vocab_size: int, longest: int) -> list[list[int]]:
    """Each goes on from somewhere in an earlier one."""
    prompts: list[list[int]] = [[rng.randrange(vocab_size) for _ in range(longest)]]
    while len(prompts) < number:
        stem = rng.choice(prompts)
        stem = stem[: rng.randint(0, len(stem) - 1)]
        prompts.append([*stem, *(rng.randrange(vocab_size) for _ in range(rng.randint(1, longest - len(stem))))])
    return prompts


# --- over simulated pools


@pytest.mark.parametrize("seed", range(4))
async def test_same_tokens_with_shared_prefixes(seed: int) -> None:
    """Hits of every length, beside misses where the cache has forgotten, with features that get lost."""
    async with make_world(seed, drop=0.05, prefill_chunk_tokens=11, max_running=4) as world:
        target = world.add_target(forget=0.02)
        world.add_drafter(skill=0.8)
        requests = [
            make_request(world.rng, f"s{i}", **prompt_of(*prompt))
            for i, prompt in enumerate(branching_prompts(world.rng, 30, 97, 60))
        ]
        for request in requests:
            world.router.submit(request, world.client)
        await world.check_same_tokens(requests)
        await world.check_nothing_left()
        timings, num_prompt_tokens = world.router.timings, sum(request.num_prompt_tokens for request in requests)
        assert timings.hit_tokens > 100
        assert timings.prefill_tokens + timings.hit_tokens == num_prompt_tokens
        told = [world.client.first[request.sequence_id].cached_tokens for request in requests]
        assert sum(told) == timings.hit_tokens
        for request, cached_tokens in zip(requests, told, strict=True):
            statistics = world.client.last[request.sequence_id].statistics
            assert statistics is not None
            assert statistics.cached_tokens == cached_tokens < request.num_prompt_tokens
        chunks = [prefill for request in target.rounds for prefill in request.prefills]
        assert any(len(chunk.following) for chunk in chunks)


async def test_a_hit_skips_whole_chunks() -> None:
    """In blocks of 8 and chunks of 10: after the hit of 24 tokens the first chunk still computes 10."""
    async with make_world(1, prefill_chunk_tokens=10) as world:
        target = world.add_target()
        prompt = list(range(40))
        for name, token_ids in (("first", prompt), ("second", [*prompt[:30], *range(50, 70)])):
            request = make_request(world.rng, name, **prompt_of(*token_ids))
            world.router.submit(request, world.client)
            await world.check_same_tokens([request])
        chunks = [(p.key.sequence_id[0], p.start, len(p.token_ids)) for r in target.rounds for p in r.prefills]
        assert chunks == [
            *[("f", start, 10) for start in (0, 10, 20, 30)],
            ("s", 0, 10),  # computed: 24 … 33
            ("s", 34, 10),
            ("s", 44, 6),
        ]
        assert (world.router.timings.prefill_tokens, world.router.timings.hit_tokens) == (40 + 26, 24)


async def test_what_is_found_after_a_failover_is_not_told_as_the_prompt_s() -> None:
    async with make_world(2) as world:
        target = world.add_target()
        world.add_drafter()
        request = make_request(world.rng, "s", **prompt_of(*range(30)), max_tokens=60, stop_token_ids=())
        target.fail_next = [RuntimeError("a kernel failed")]
        world.router.submit(request, world.client)
        await until(lambda: world.client.tokens)
        target.fail_next = [RuntimeError("a kernel failed")]
        await world.check_same_tokens([request])
        assert world.router.timings.hit_tokens >= 24
        statistics = world.client.last["s"].statistics
        assert statistics is not None
        assert statistics.cached_tokens == world.client.first["s"].cached_tokens == 0
        # Nor is it to another router, which gets the tokens received with the prompt.
        received = np.concatenate([request.token_ids, np.asarray(world.client.tokens["s"][:5], np.int32)])
        world.router.submit(replace(request, sequence_id="again", token_ids=received), world.client)
        await world.client.wait("again")
        assert world.client.first["again"].cached_tokens == 0
        world.router.submit(replace(request, sequence_id="anew"), world.client)
        await world.client.wait("anew")
        assert world.client.first["anew"].cached_tokens == 24


@pytest.mark.parametrize(
    "change",
    [
        {"num_hit_tokens": 40},  # more than there are
        {"num_hit_tokens": 16},  # but cached_len says otherwise
        {"cached_len": 9},
        {"cached_len": 40},
        {"bonus_token": 7},
    ],
    ids=str,
)
async def test_nonsense_is_not_committed(change: dict[str, int]) -> None:
    class OddTarget(SimulatedTarget):
        changes = [change] * 3

        def _prefill(self, prefill: Prefill) -> Outcome:
            outcome = super()._prefill(prefill)
            return outcome._replace(**self.changes.pop()) if self.changes else outcome  # type: ignore[arg-type]

    async with make_world(3, prefill_chunk_tokens=10) as world:
        target = OddTarget(world.network, prefix_caching=False)
        world.targets.append(target)
        world.router.add_target(target)
        request = make_request(world.rng, "s", **prompt_of(*range(40)))
        world.router.submit(request, world.client)
        await world.check_same_tokens([request])
        assert max(p.key.attempt for r in target.rounds for p in r.prefills) > 1
        assert not target.changes
        await world.check_nothing_left()


# --- over real models


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return make_tiny_pair(Path(tmp_path_factory.mktemp("pair")), num_layers=2, target_layer_ids=(0, 1))


@pytest.fixture(scope="module")
def plain_runner(pair: TinyPair) -> TargetRunner:
    return TargetRunner.load(str(pair.target), None, PLAIN_SETTINGS)


def make_tiny_requests(pair: TinyPair, seed: int, number: int, **changes: Any) -> list[GenerationRequest]:
    rng = random.Random(seed)
    requests = []
    for i, prompt in enumerate(branching_prompts(rng, number, pair.settings.vocab_size, 90)):
        sampling = SamplingParams(temperature=rng.choice([0.0, 0.7, 1.0]), seed=rng.randrange(2**64))
        values = {"max_tokens": rng.randint(1, 24), "tree_budget": rng.choice([None, 0, 7, 32]), **changes}
        requests.append(GenerationRequest(f"r{i}", sampling=sampling, **prompt_of(*prompt), **values))
    return requests


@pytest.mark.parametrize("prefix_caching", [True, False])
async def test_on_or_off_gives_the_tokens_of_plain_decoding(
    pair: TinyPair, plain_runner: TargetRunner, prefix_caching: bool
) -> None:
    """Prompts that branch off each other, in a pool where prefixes are evicted all the time."""
    requests = make_tiny_requests(pair, 1, 40)
    expected = await decode_plainly(plain_runner, requests)
    settings = TARGET_SETTINGS.model_copy(
        update={"prefix_caching": prefix_caching, "num_blocks": 64, "max_model_len": 256}
    )
    runner = TargetRunner.load(str(pair.target), str(pair.drafter), settings)
    drafter = DrafterRunner.load(str(pair.drafter), str(pair.target), DRAFTER_SETTINGS)
    async with make_world(1, draft_timeout_ms=60_000, max_running=6, prefill_chunk_tokens=21) as world:
        with ThreadPoolExecutor(max_workers=1) as executor:
            add_models(world.router, runner, drafter, executor)
            for request in requests:
                world.router.submit(request, world.client)
            await check_outputs(world.client, expected)
            await until(lambda: not runner.num_sequences and not drafter.num_sequences)
            await world.router.close()
        assert (world.router.timings.hit_tokens > 300) == prefix_caching
        assert runner.free_blocks == runner.info.num_blocks


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_a_hit_changes_no_acceptance(pair: TinyPair, temperature: float) -> None:
    """The drafter drafts from features that the target read from its pages: a wrong one would show here alone.

    Nothing is learned in between, or the second request would have better trees.
    """
    runner = TargetRunner.load(str(pair.target), str(pair.drafter), TARGET_SETTINGS)
    drafter = DrafterRunner.load(str(pair.drafter), str(pair.target), DRAFTER_SETTINGS)
    prompt = np.random.default_rng(2).integers(2, pair.settings.vocab_size, 100).astype(np.int32)
    sampling = SamplingParams(temperature=temperature, seed=5)
    async with make_world(
        1, draft_timeout_ms=60_000, always_waits=True, tree_budget=12, learns_acceptance=False
    ) as world:
        with ThreadPoolExecutor(max_workers=1) as executor:
            add_models(world.router, runner, drafter, executor)
            for name in ("computed", "found"):
                world.router.submit(GenerationRequest(name, prompt, 100, 48, sampling), world.client)
                await world.client.wait(name)
                await until(lambda: not runner.num_sequences)
            await world.router.close()
    computed, found = (world.client.last[name].statistics for name in ("computed", "found"))
    assert computed is not None
    assert found is not None
    assert (computed.cached_tokens, found.cached_tokens) == (0, 96)
    assert world.client.tokens["computed"] == world.client.tokens["found"]
    assert computed.accepted_tokens > 10
    assert (computed.rounds, computed.accepted_tokens, computed.tree_nodes) == (
        found.rounds,
        found.accepted_tokens,
        found.tree_nodes,
    )


async def test_a_target_keeps_its_prefixes_when_its_router_dies(pair: TinyPair, plain_runner: TargetRunner) -> None:
    """Over gRPC: the other router is sent prompt and received tokens, and the target that dials it has them still."""
    requests = make_tiny_requests(pair, 3, 6, max_tokens=60)
    expected = await decode_plainly(plain_runner, requests)
    async with make_cluster(pair) as cluster:
        for request in requests:
            cluster.pool.submit(request, cluster.client)
        await until(lambda: len(cluster.client.tokens) == 6)
        dying = cluster.routers[0]
        second = await cluster.add_router()
        await cluster.lose(dying)
        await check_outputs(cluster.client, expected)
        assert second.router.timings.hit_tokens > 100
        await cluster.check_nothing_left()
