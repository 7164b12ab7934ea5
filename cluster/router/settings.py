"""How a router schedules: one frozen object, checked where it is made."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.requests import Strategy
from dflash_core.errors import InvalidSettings


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """Raises `InvalidSettings` for a value outside its range.

    tree_budget: nodes per sequence and round without the root. The budgets of all sequences of a round are one pool
        that goes to the likeliest nodes of all; a request's own `tree_budget` is also its upper limit.
    max_running: most sequences in one target's rounds. max_waiting: longer queues answer `Overloaded`.
    prefill_chunk_tokens: most prompt tokens of one round, all sequences together.
    draft_wait_ms: how long a drafter may hold a block whose context features have not arrived.
    draft_timeout_ms: how long a round waits for its drafts; later ones go in with the root alone.
    failover_timeout_s: how long sequences wait for a target after theirs was lost.
    max_retries: how often one sequence is prefilled again after a fault before its request fails. Preemption is none.
    """

    strategy: Strategy = Strategy.DRAFT_TREES
    tree_budget: int = 32
    max_running: int = 256
    max_waiting: int = 1024
    prefill_chunk_tokens: int = 512
    draft_wait_ms: int = 200
    draft_timeout_ms: int = 1_000
    round_timeout_ms: int = 60_000
    failover_timeout_s: float = 30.0
    max_retries: int = 8

    def __post_init__(self) -> None:
        least = {
            "tree_budget": 0,
            "max_running": 1,
            "max_waiting": 1,
            "prefill_chunk_tokens": 1,
            "draft_wait_ms": 0,
            "draft_timeout_ms": 1,
            "round_timeout_ms": 1,
            "failover_timeout_s": 0,
            "max_retries": 0,
        }
        for name, lowest in least.items():
            value = getattr(self, name)
            if value < lowest:
                raise InvalidSettings(f"{name} must be at least {lowest}, got {value}", param=name)
