"""Which router a gateway takes: by prefix, within a bound on the load, and another where the first is full."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.requests import FinishReason, GenerationRequest, TokenEvent
from cluster.transports.affinity import AFFINITY_TOKENS, choose_router
from dflash_core.contracts import SamplingParams
from dflash_core.errors import Overloaded
from tests.cluster.fake_routers import FakeRouter, pool_over, prompt_of, request_of
from tests.cluster.simulated_client import Client


def test_a_prefix_has_one_router_whatever_follows_it_and_in_whatever_order_they_are_listed() -> None:
    routers = [FakeRouter(f"10.0.0.{i}:20000") for i in range(5)]
    chosen = set()
    for number in range(60):
        prompt = prompt_of(number)
        first = choose_router(prompt, routers)
        assert choose_router(np.append(prompt[:AFFINITY_TOKENS], prompt_of(7, 30)), routers[::-1]) is first
        chosen.add(first.address)
    assert len(chosen) == 5


def test_a_router_that_goes_moves_only_its_own_prefixes() -> None:
    routers = [FakeRouter(f"10.0.0.{i}:20000") for i in range(5)]
    for number in range(60):
        before = choose_router(prompt_of(number), routers)
        after = choose_router(prompt_of(number), routers[1:])
        assert after is before or before is routers[0]


def test_a_short_prompt_goes_to_the_least_loaded() -> None:
    routers = [FakeRouter("a", 3), FakeRouter("b", 1), FakeRouter("c", 2)]
    assert choose_router(prompt_of(1, AFFINITY_TOKENS - 1), routers) is routers[1]


@given(st.lists(st.integers(0, 300), min_size=1, max_size=6), st.integers(0, 50))
def test_nobody_gets_more_than_the_bound(loads: list[int], number: int) -> None:
    routers = [FakeRouter(f"10.0.0.{i}:20000", load) for i, load in enumerate(loads)]
    chosen = choose_router(prompt_of(number), routers)
    assert chosen.num_active <= 1.25 * (sum(loads) + 1) / len(loads) + 4


def test_the_overflow_of_a_popular_prefix_stays_together() -> None:
    routers = [FakeRouter(f"10.0.0.{i}:20000") for i in range(4)]
    prompt = prompt_of(3)
    first = choose_router(prompt, routers)
    first.num_active = 100
    second = choose_router(prompt, routers)
    assert second is not first
    second.num_active = 20  # as far as that goes, it is no more than what others may have
    assert choose_router(prompt, routers) is second


# --- full routers


async def test_a_full_router_sends_a_request_to_the_next_and_all_of_them_to_its_client() -> None:
    routers = [FakeRouter("a"), FakeRouter("b"), FakeRouter("c")]
    pool, client = pool_over(*routers), Client()
    pool.submit(request_of("s", prompt_of(1)), client)
    asked = []
    for _ in routers:
        (router,) = [router for router in routers if router.taken]
        asked.append(router.address)
        assert not client.last
        router.answer("s", [], Overloaded(f"{router.address} is full", retry_after_s=7.0))
    assert sorted(asked) == ["a", "b", "c"]
    error = client.last["s"].error
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == 7.0
    assert pool.num_active == 0
    await pool.close()


async def test_one_in_mid_answer_waits_for_a_place() -> None:
    """Its router is gone and the others are full: that is a pause, no end."""
    router = FakeRouter("a")
    pool, client = pool_over(router), Client()
    pool.submit(request_of("s", prompt_of(1)), client)
    router.answer("s", [5, 6])
    for _ in range(3):
        router.answer("s", [], Overloaded("full"))
        assert not client.last
        assert not router.taken
        pool._place_parked()
    request, sink = router.taken["s"]
    assert request.token_ids[-2:].tolist() == [5, 6]
    sink.put([TokenEvent("s", np.asarray([7], np.int32), FinishReason.STOP)])
    assert client.tokens["s"] == [5, 6, 7]
    await pool.close()


@pytest.mark.parametrize("num_received", [0, 2])
async def test_a_resubmission_goes_by_its_prompt_alone(num_received: int) -> None:
    """Else a short prompt would change its router as its answer grows."""
    routers = [FakeRouter("a"), FakeRouter("b")]
    pool, client = pool_over(*routers), Client()
    prompt = prompt_of(2, AFFINITY_TOKENS - 1)
    request = GenerationRequest("s", np.append(prompt, prompt[:num_received]), len(prompt), 20, SamplingParams())
    routers[0].num_active = 1
    pool.submit(request, client)
    assert list(routers[1].taken) == ["s"]
    await pool.close()
