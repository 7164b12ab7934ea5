"""How a router schedules: one frozen object, checked where it is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.requests import Strategy
from dflash_core.errors import InvalidSettings


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """Raises `InvalidSettings` for a value outside its range.

    tree_budget: nodes per sequence and round without the root; None: as many as pay, which may be none. What all
        sequences of a round get together goes to the likeliest nodes of all. A request's own `tree_budget` is its
        upper limit.
    max_tree_nodes, min_tree_nodes: of one sequence where tree_budget is None. A floor above 0 trades the rate of all
        for that of those whose drafts are poor.
    learns_acceptance: nodes are scored by how often such nodes were accepted; False: by the drafter's probability.
    learned_folder: where what was learned of a pair is kept; None: with this router it goes.
    micro_batches: most rounds in flight per target. With two, a target verifies one half of its sequences while the
        others are drafted, where that pays.
    max_running: most sequences in one target's rounds. max_waiting: longer queues answer `Overloaded`.
    queue_ms_per_token: by how much each prompt token that is not cached puts a request back in the queue, so that
        short ones go first and long ones wait for them a bounded time. 0: first come, first served.
    prefill_chunk_tokens: most prompt tokens of one round, all sequences together.
    draft_wait_ms: how long a drafter may hold a block whose context features have not arrived.
    draft_timeout_ms: how long a round waits for its drafts at most; it waits as long as that pays. Later ones go in
        with the root alone.
    always_waits: each round waits for all of its drafts, up to draft_timeout_ms: where drafter and target share a
        thread, a round that goes on without them only queues up behind them.
    failover_timeout_s: how long sequences wait for a target after theirs was lost.
    max_retries: how often one sequence is prefilled again after a fault before its request fails. Preemption is none.
    """

    strategy: Strategy = Strategy.DRAFT_TREES
    tree_budget: int | None = None
    max_tree_nodes: int = 256
    min_tree_nodes: int = 0
    learns_acceptance: bool = True
    learned_folder: Path | None = None
    micro_batches: int = 2
    max_running: int = 256
    max_waiting: int = 1024
    queue_ms_per_token: float = 1.0
    prefill_chunk_tokens: int = 512
    draft_wait_ms: int = 200
    draft_timeout_ms: int = 1_000
    always_waits: bool = False
    round_timeout_ms: int = 60_000
    failover_timeout_s: float = 30.0
    max_retries: int = 8

    def __post_init__(self) -> None:
        least = {
            "tree_budget": 0,
            "max_tree_nodes": 1,
            "min_tree_nodes": 0,
            "micro_batches": 1,
            "max_running": 1,
            "max_waiting": 1,
            "queue_ms_per_token": 0,
            "prefill_chunk_tokens": 1,
            "draft_wait_ms": 0,
            "draft_timeout_ms": 1,
            "round_timeout_ms": 1,
            "failover_timeout_s": 0,
            "max_retries": 0,
        }
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise InvalidSettings(f"{name} must be at least {lowest}, got {value}", param=name)
        if self.micro_batches > 2:
            raise InvalidSettings(f"micro_batches must be 1 or 2, got {self.micro_batches}", param="micro_batches")
        if self.min_tree_nodes > self.max_tree_nodes:
            raise InvalidSettings(
                f"min_tree_nodes {self.min_tree_nodes} exceeds max_tree_nodes {self.max_tree_nodes}",
                param="min_tree_nodes",
            )
