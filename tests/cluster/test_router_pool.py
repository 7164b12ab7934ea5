"""How long a gateway keeps a request that no router runs, and where it goes when its router has no target left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from cluster.transports import router_pool
from cluster.transports.router_pool import RouterPool
from dflash_core.contracts import TargetInfo
from dflash_core.errors import DeadlineExceeded, Overloaded, Unavailable
from tests.cluster.fake_routers import FakeRouter, pool_over, prompt_of, request_of
from tests.cluster.simulated_client import Client

INFO = TargetInfo("tiny", 256, 8, 2, 512, (0,), 4, 64, 64, 64, "w:f")


@pytest.fixture
def advance(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the pool's clock, in seconds."""
    times = [1000.0]
    monkeypatch.setattr(router_pool.time, "monotonic", lambda: times[0])

    def by(seconds: float) -> None:
        times[0] += seconds

    return by


def routers_with_targets(*addresses: str) -> list[FakeRouter]:
    return [FakeRouter(address, target_info=INFO) for address in addresses]


def lose_target(pool: RouterPool, router: FakeRouter) -> None:
    router.target_info, router.is_ready = None, False
    pool._changed(router)  # type: ignore[arg-type]


async def test_what_waits_at_a_router_without_targets_goes_on_at_another() -> None:
    first, second = routers_with_targets("a", "b")
    pool, client = pool_over(first, second), Client()
    pool.submit(request_of("s", prompt_of(1)), client)
    (here,) = [router for router in (first, second) if router.taken]
    (there,) = [router for router in (first, second) if router is not here]
    here.answer("s", [5, 6])
    lose_target(pool, here)
    assert not here.taken
    assert there.taken["s"][0].token_ids[-2:].tolist() == [5, 6]
    await pool.close()


async def test_a_full_queue_elsewhere_is_no_answer_to_what_was_taken_once() -> None:
    first, second = routers_with_targets("a", "b")
    pool, client = pool_over(first, second), Client()
    pool.submit(request_of("s", prompt_of(1)), client)
    (here,) = [router for router in (first, second) if router.taken]
    (there,) = [router for router in (first, second) if router is not here]
    lose_target(pool, here)
    there.answer("s", [], Overloaded("full"))
    assert not client.last
    pool._place_parked()
    assert "s" in there.taken
    await pool.close()


async def test_the_last_router_keeps_what_waits_for_its_target() -> None:
    """A target may come back there before any other: nothing is sent about."""
    (only,) = routers_with_targets("a")
    pool, client = pool_over(only), Client()
    pool.submit(request_of("s", prompt_of(1)), client)
    lose_target(pool, only)
    assert "s" in only.taken
    await pool.close()


async def test_the_time_that_a_router_waited_for_a_target_counts(advance: Callable[[float], None]) -> None:
    (only,) = routers_with_targets("a")
    pool, client = pool_over(only), Client()
    pool._note_readiness()
    pool.submit(request_of("s", prompt_of(1)), client)
    advance(100.0)
    lose_target(pool, only)
    advance(30.0)
    only.answer("s", [], Unavailable("no target came back within 30 s"))
    pool._place_parked()
    assert isinstance(client.last["s"].error, Unavailable)
    assert pool.num_active == 0
    await pool.close()


async def test_a_request_that_comes_late_waits_its_own_time(advance: Callable[[float], None]) -> None:
    (only,) = routers_with_targets("a")
    pool, client = pool_over(only), Client()
    lose_target(pool, only)
    advance(100.0)
    pool.submit(request_of("s", prompt_of(1)), client)
    advance(29.0)
    pool._place_parked()
    assert not client.last
    advance(1.5)
    pool._place_parked()
    assert isinstance(client.last["s"].error, Unavailable)
    await pool.close()


async def test_the_deadline_is_kept_at_the_gateway_too() -> None:
    """Its router says nothing more: a connection that is half open, a process that is stopped."""
    (silent,) = routers_with_targets("a")
    pool, client = pool_over(silent), Client()
    pool.submit(replace(request_of("s", prompt_of(1)), timeout_ms=20), client)
    await client.wait("s")
    assert isinstance(client.last["s"].error, DeadlineExceeded)
    assert not silent.taken  # cancelled there
    assert pool.num_active == 0
    await pool.close()


async def test_what_has_ended_has_no_deadline_any_more() -> None:
    (router,) = routers_with_targets("a")
    pool, client = pool_over(router), Client()
    pool.submit(replace(request_of("s", prompt_of(1)), timeout_ms=5), client)
    pool.cancel("s")
    await asyncio.sleep(0.02)
    assert not client.last
    await pool.close()
