"""Sessions with listed peers, step by step on the event loop."""

from __future__ import annotations

import asyncio

import pytest

from cluster.transports import dialer as module
from cluster.transports.dialer import Dialer

MOST_STEPS = 12  # from a session's end to that of its task, with room


@pytest.mark.parametrize("num_steps", range(MOST_STEPS))
async def test_a_peer_listed_again_is_dialled_whenever_that_is(monkeypatch: pytest.MonkeyPatch, num_steps: int) -> None:
    monkeypatch.setattr(module, "pause_s", lambda num_failures: 0.0)
    num_running, ends = 0, asyncio.Event()

    async def session(address: str) -> None:
        nonlocal num_running
        num_running += 1
        await ends.wait()
        num_running -= 1

    dialer = Dialer(session, "peer")
    dialer.set_endpoints(["peer:1"])
    await asyncio.sleep(0)
    assert num_running == 1

    ends.set()
    dialer.set_endpoints([])
    for _ in range(num_steps):
        await asyncio.sleep(0)
    ends.clear()
    dialer.set_endpoints(["peer:1"])
    for _ in range(MOST_STEPS):
        await asyncio.sleep(0)
    assert num_running == 1
    await dialer.close()
