"""Features travel to drafters while drafts pay, and are caught up with when they pay again: on a virtual clock."""

from __future__ import annotations

from benchmarks.simulate.clock import run_virtually
from cluster.requests import GenerationRequest
from cluster.router.drafting import MOST_UNASKED_ROUNDS
from dflash_core.contracts import ContextChunk
from tests.cluster.simulated_drafter import Network, SimulatedDrafter
from tests.cluster.simulated_text import make_request
from tests.cluster.world import World, make_world

NUM_SEQUENCES, NUM_TOKENS = 8, 120


class CountingNetwork(Network):
    num_features = 0

    def send(self, address: str, chunks: list[ContextChunk]) -> None:
        self.num_features += sum(chunk.features.shape[0] for chunk in chunks)
        super().send(address, chunks)


def _requests(world: World, prefix: str) -> list[GenerationRequest]:
    return [
        make_request(world.rng, f"{prefix}{i}", max_tokens=NUM_TOKENS, stop_token_ids=(), tree_budget=None)
        for i in range(NUM_SEQUENCES)
    ]


async def _decode(world: World, prefix: str) -> int:
    """How many rounds the target took for a set of requests."""
    requests = _requests(world, prefix)
    num_before = len(world.targets[0].rounds)
    for request in requests:
        world.router.submit(request, world.client)
    await world.check_same_tokens(requests)
    await world.check_nothing_left()
    return len(world.targets[0].rounds) - num_before


def _pair(world: World, skill: float) -> tuple[CountingNetwork, SimulatedDrafter]:
    """Each row costs as much as the round itself: nodes pay if nearly all are accepted."""
    network = CountingNetwork(world.rng)
    world.network = network
    world.add_target(delay_s=0.002, row_s=0.002, num_blocks=400, max_rows=48)
    return network, world.add_drafter(skill=skill, delay_s=0.05)


def test_drafters_whose_drafts_do_not_pay_are_not_fed() -> None:
    async def main() -> None:
        async with make_world(1, tree_budget=None, draft_timeout_ms=1_000) as world:
            network, _ = _pair(world, skill=0.0)
            await _decode(world, "a")
            network.num_features = 0
            for number in range(4):
                await _decode(world, f"b{number}.")
            # What is tried now and then has to catch up, with its prompt too.
            assert network.num_features < 0.4 * 4 * NUM_SEQUENCES * NUM_TOKENS

    run_virtually(main())


def test_drafts_that_pay_again_are_found_and_fed() -> None:
    async def main() -> None:
        async with make_world(2, tree_budget=None, draft_timeout_ms=1_000, micro_batches=1) as world:
            network = CountingNetwork(world.rng)
            world.network = network
            world.add_target(delay_s=0.02, row_s=0.0005, num_blocks=400, max_rows=48)
            drafter = world.add_drafter(skill=0.0, delay_s=0.002)
            for number in range(3):
                num_plain = await _decode(world, f"a{number}.")
            assert num_plain > 0.8 * NUM_TOKENS
            drafter.skill = 1.0
            nums_of_rounds: list[int] = []
            while len(nums_of_rounds) < 12 and (not nums_of_rounds or nums_of_rounds[-1] >= 0.6 * num_plain):
                nums_of_rounds.append(await _decode(world, f"b{len(nums_of_rounds)}."))
            assert nums_of_rounds[-1] < 0.6 * num_plain, nums_of_rounds

    run_virtually(main())


def test_features_that_were_kept_back_come_before_the_next_draft() -> None:
    """However often feeding stops and goes on, no draft is asked for before its context is there."""

    async def main() -> None:
        async with make_world(3, tree_budget=None, draft_timeout_ms=1_000) as world:
            network, drafter = _pair(world, skill=0.3)
            for number in range(4):
                drafter.skill = 0.9 * (number % 2)
                await _decode(world, f"s{number}.")
            told = [refill for done in world.targets[0].rounds for refill in done.refills]
            assert any(refill.drafter_address == "" for refill in told)
            assert any(refill.drafter_address == drafter.info.address for refill in told)
            assert drafter.num_drafts > MOST_UNASKED_ROUNDS
            assert drafter.num_missing == 0
            assert network.num_features > 0

    run_virtually(main())
