"""What is simulated: a cluster, its clients, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.simulate.workload import Arrivals, ClosedLoop, Lengths, RequestKind

SHORT = RequestKind(1.0, prompt=Lengths(16, 64), output=Lengths(64, 192))
LONG = RequestKind(1.0, prompt=Lengths(2_000, 6_000), output=Lengths(256, 768))


@dataclass(frozen=True, slots=True)
class Scenario:
    """`name` is what its point of a curve is called, `group` the curve.

    What is measured begins after `warm_s`; in a closed loop that runs from when as many outputs have begun as there are
    streams.
    """

    group: str
    name: str
    hardware: str
    num_targets: int
    arrivals: Arrivals
    kinds: tuple[RequestKind, ...] = (SHORT,)
    targets_per_router: int = 4
    drafters_per_target: float = 1.0
    straggler_share: float = 0.0  # of drafts
    round_noise: float = 0.0  # standard deviation of the logarithm of a round's time
    temperature: float | None = None  # of all outputs; None: all that were recorded
    router_s_per_sequence: float = 15e-6  # of a router's processor, per round: 1 ms for 64 sequences
    warm_s: float = 0.3
    measured_s: float = 2.0
    seed: int = 0

    @property
    def num_routers(self) -> int:
        return -(-self.num_targets // self.targets_per_router)

    @property
    def num_streams(self) -> int | None:
        return self.arrivals.num_streams if isinstance(self.arrivals, ClosedLoop) else None
