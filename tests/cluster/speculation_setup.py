"""What is known of a target and of its sequences, so that it can be asked whom to draft for."""

from __future__ import annotations

import random

import numpy as np

from cluster.requests import GenerationRequest, LatencyClass
from cluster.router import RouterSettings
from cluster.router.estimates import ObservedRound
from cluster.router.latency import DraftTimeModel, RoundLoad
from cluster.router.links import TargetLink
from cluster.router.sequence import Phase, Sequence
from cluster.router.speculation import Speculation
from cluster.router.tree_planner import PlannedTrees, TreePlanner
from dflash_core.contracts import SamplingParams, SequenceKey
from tests.cluster.simulated_client import Client
from tests.cluster.simulated_drafter import Network
from tests.cluster.simulated_target import SimulatedTarget

NUM_ROUNDS = 200


class Setup:
    """A target whose rounds take 10 ms and 1 ms per row, with `between_s` for drafts, and sequences on it."""

    def __init__(self, num_sequences: int, between_s: float = 5e-3, plain_s: float = 1e-3, **settings: int) -> None:
        target = SimulatedTarget(Network(random.Random(0)))
        self.link = TargetLink(target, 256)
        self.planner = TreePlanner(RouterSettings(**settings))  # type: ignore[arg-type]
        self.speculation = Speculation(self.link, RouterSettings(**settings), self.planner)  # type: ignore[arg-type]
        self.speculation._trials._drafts.seconds = 0.0  # what is set aside to begin with is spent
        self.sequences = [self.sequence(f"s{i}") for i in range(num_sequences)]
        for sequence in self.sequences:
            self.link.sequences[sequence] = None
        for rows in (1, 2, 4, 8, 16, 32, 40) * NUM_ROUNDS:
            self.speculation.times.verify.observe(RoundLoad(rows, 1, 0.0, 0.0), self.verify_s(rows))
        self.speculation.times._drafting = [DraftTimeModel(()), DraftTimeModel(())]
        for _ in range(NUM_ROUNDS):
            self.speculation.times.observe_between(0, plain_s)
            self.speculation.times.observe_between(num_sequences, between_s)

    @staticmethod
    def verify_s(rows: int) -> float:
        return 10e-3 + 1e-3 * rows

    @staticmethod
    def sequence(
        name: str,
        max_tokens: int = 100,
        latency_class: LatencyClass = LatencyClass.STANDARD,
        temperature: float = 0.0,
    ) -> Sequence:
        token_ids = np.array([5, 6, 7], np.int32)
        request = GenerationRequest(
            name, token_ids, 3, max_tokens, SamplingParams(temperature=temperature), latency_class=latency_class
        )
        key = SequenceKey(name, 1)
        return Sequence(
            request, Client(), key, 0.0, token_ids.tolist(), phase=Phase.RUNNING, drafter_knows=True, cached_len=2
        )

    def run_plainly(self, num_rounds: int = NUM_ROUNDS) -> None:
        planned = PlannedTrees.roots_only([7] * len(self.sequences))
        rows = len(self.sequences)
        for _ in range(num_rounds):
            load = RoundLoad(rows, rows, 0.0, 0.0)
            self.speculation.observe_round(
                ObservedRound(load, planned, self.verify_s(rows), self.verify_s(rows) + 1e-3, False, 1)
            )

    def choose(self) -> list[Sequence]:
        """Who is drafted for in the next round of all of them."""
        return self.speculation.choose_drafted(self.sequences, self.sequences)

    def set_gains(self, *gains: float) -> None:
        for sequence, gain in zip(self.sequences, gains, strict=True):
            sequence.gain_level = gain
