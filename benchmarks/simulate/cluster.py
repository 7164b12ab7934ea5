"""Routers, each with its share of the simulated targets and drafters, and the clients in front of them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np

from benchmarks.simulate.clients import Client, Window
from benchmarks.simulate.drafter import SimulatedDrafter
from benchmarks.simulate.features import FeatureReceiver, FeatureSender
from benchmarks.simulate.hardware import hardware
from benchmarks.simulate.meter import Meter
from benchmarks.simulate.playback import Playback
from benchmarks.simulate.scenario import Scenario
from benchmarks.simulate.target import SimulatedTarget
from benchmarks.simulate.times import RoundNoise, RouterProcessor
from benchmarks.simulate.workload import ClosedLoop, OpenLoop, RequestSource
from cluster.requests import Strategy
from cluster.router import Router, RouterSettings
from dflash_core.errors import Overloaded


class SimulatedCluster:
    """Made on a running event loop. Streams of a closed loop stay with one router; else the least busy one is taken."""

    def __init__(self, scenario: Scenario, settings: RouterSettings, playback: Playback, meter: Meter) -> None:
        self.scenario = scenario
        self.window = Window()
        self._meter = meter
        self._rng = np.random.default_rng(scenario.seed)
        self._requests = RequestSource(scenario.kinds, playback, self._rng, scenario.temperature)
        self._num_requests = 0
        self.targets: list[SimulatedTarget] = []
        self.drafters: list[SimulatedDrafter] = []
        self.routers: list[Router] = []
        self.clients: list[Client] = []
        share, more = divmod(scenario.num_targets, scenario.num_routers)
        for number in range(scenario.num_routers):
            router = Router(settings)
            self._add_pools(router, share + (number < more), settings, playback, meter)
            self.routers.append(router)
            self.clients.append(Client(router, playback, meter, self.window, self._ended))

    def _add_pools(
        self, router: Router, num_targets: int, settings: RouterSettings, playback: Playback, meter: Meter
    ) -> None:
        scenario, kind = self.scenario, hardware(self.scenario.hardware)
        kind = replace(kind, draft_times=replace(kind.draft_times, straggler_share=scenario.straggler_share))
        receivers: dict[str, FeatureReceiver] = {}
        processor = RouterProcessor(scenario.router_s_per_sequence)
        for _ in range(num_targets):
            noise = RoundNoise(scenario.round_noise, np.random.default_rng([scenario.seed, len(self.targets), 1]))
            features = FeatureSender(kind.network, receivers)
            target = SimulatedTarget(kind, playback, features, processor, meter, noise)
            self.targets.append(target)
            router.add_target(target)
        if settings.strategy is Strategy.NONE:
            return
        for _ in range(max(1, round(num_targets * scenario.drafters_per_target))):
            address = f"drafter-{len(self.drafters)}"
            rng = np.random.default_rng([scenario.seed, len(self.drafters)])
            drafter = SimulatedDrafter(address, kind, playback, meter, rng)
            receivers[address] = drafter
            self.drafters.append(drafter)
            router.add_drafter(drafter)

    @property
    def num_started(self) -> int:
        return sum(client.num_started for client in self.clients)

    def start_streams(self, loop: ClosedLoop) -> None:
        """Each is met on its way through an output, so that their ends are spread."""
        for stream in range(loop.num_streams):
            self._submit(stream, rest=float(self._rng.random()))

    def submit_burst(self, arrivals: OpenLoop) -> None:
        for _ in range(arrivals.burst_size):
            self._submit(self._num_requests)

    def next_gap_s(self, arrivals: OpenLoop) -> float:
        return arrivals.next_gap_s(self._rng)

    def _ended(self, stream: int) -> None:
        if isinstance(self.scenario.arrivals, ClosedLoop):
            self._submit(stream)

    def _submit(self, stream: int, rest: float = 1.0) -> None:
        with self._meter.outside():
            request = self._requests.next(f"request-{self._num_requests}", rest)
            self._num_requests += 1
        if isinstance(self.scenario.arrivals, ClosedLoop):
            client = self.clients[stream % len(self.clients)]
        else:
            client = min(self.clients, key=lambda client: client.num_active)
        try:
            client.submit(request, stream)
        except Overloaded as error:
            self.window.refused += 1
            if isinstance(self.scenario.arrivals, ClosedLoop):
                asyncio.get_running_loop().call_later(error.retry_after_s, self._submit, stream, rest)

    async def close(self) -> None:
        for client, router in zip(self.clients, self.routers, strict=True):
            client.close()
            router.release_client(client)
            await router.close()
