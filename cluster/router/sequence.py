"""One sequence as the router knows it, from submission to its last token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from cluster.requests import EventSink, FinishReason, GenerationRequest, GenerationStatistics, LatencyClass
from cluster.router.prefixes import PREFIX_BLOCK_TOKENS, extend_hashes
from dflash_core.contracts import DEFAULT_RANKING, DraftRanking, PackedDrafts, SequenceKey, TokenIds
from dflash_core.trees.acceptance import context_class

if TYPE_CHECKING:
    from cluster.router.links import DrafterLink, TargetLink


FIRST_ATTEMPT = 1
# What a token of a request counts against the others' when nodes are given out.
_WEIGHTS = {LatencyClass.INTERACTIVE: 2.0, LatencyClass.STANDARD: 1.0, LatencyClass.BATCH: 0.5}


class Phase(Enum):
    WAITING = "waiting"  # no target holds it
    PREFILLING = "prefilling"  # a target holds its blocks; its tokens are being prefilled
    RUNNING = "running"  # its root waits to be verified in every round
    DONE = "done"


# What is asked once a round and sequence goes by these: an enum's attribute takes ten times as long to look up.
WAITING, PREFILLING, RUNNING, DONE = Phase


@dataclass(slots=True, eq=False)
class Sequence:
    """`token_ids` are all committed tokens: prompt, tokens received before a resubmission, tokens of this router.

    The root is the last of them; while the sequence runs, `cached_len` is one less than their number. What is read
    several times in every round is kept beside them, and changes in `append` alone.
    """

    request: GenerationRequest
    sink: EventSink
    key: SequenceKey
    submitted_at: float
    token_ids: list[int]
    phase: Phase = WAITING
    target: TargetLink | None = None
    drafter: DrafterLink | None = None
    drafter_knows: bool = False  # the drafter was told of this attempt
    is_announced: bool = False  # a draft stage has seen this attempt: its drafter, if any, knows of it
    cached_len: int = 0  # tokens of this attempt in the target's KV
    num_hit_tokens: int = 0  # of them, those that the prefix cache had: their blocks may be others' too
    micro_batch: int | None = None  # of its target's, the one whose rounds it is in
    drafts: PackedDrafts | None = None  # an answer that has a draft for the present root
    draft_place: int = 0  # of it in there
    ranking: DraftRanking = DEFAULT_RANKING  # of the draft asked for last
    gain_level: float | None = None  # tokens per round that its drafts would bring with 32 nodes; None: none was seen
    num_gains: int = 0  # that were seen
    history: int = -1  # its slot in the planner's histories; −1: none
    num_told: int = 0  # of its tokens, those that the history has
    refill_from: int | None = None  # first position whose feature the drafter lacks; goes with the next round
    skip_drafts: int = 0  # rounds to go on with the root alone, while a refill is on its way
    num_refills: int = 0  # in a row, without a draft in between
    unfed_from: int | None = None  # first position whose features the target keeps to itself; None: all are sent
    num_unasked: int = 0  # rounds in a row in which no draft of it was asked for
    min_nodes: int = 0  # of its next tree, if it has a draft
    is_on_trial: bool = False  # its drafter catches up, so that it gets a draft whether that is thought to pay or not
    retries: int = 0
    deadline: float | None = None  # of the request, by the router's clock
    timer: asyncio.TimerHandle | None = None  # fires then
    failover_timer: asyncio.TimerHandle | None = None
    admitted_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    rounds: int = 0
    tree_nodes: int = 0
    accepted_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, those that the prefix cache had when it was first prefilled
    waits_for: TargetLink | None = None  # in the queue: the target that is set apart for it until it has room there
    num_claimed_blocks: int = 0  # these three are its target's, which sums them up; 0 while there is none
    num_uncached_tokens: int = 0
    num_expected_tokens: int = 0  # of its prefix, those that its target is thought to have cached
    num_wanted: int = field(init=False)  # tokens that are still to be written
    root_position: int = field(init=False)
    weight: float = field(init=False)
    kind: int = field(init=False)  # those with the same one are sampled alike; 0: greedily
    context_class: int = field(init=False)  # `kind` and how its draft is ranked
    stop_ids: frozenset[int] = field(init=False)
    num_total: int = field(init=False)  # tokens it can reach: what must fit a target that it goes to
    prefix_hashes: list[int] = field(init=False)  # of its whole blocks of `PREFIX_BLOCK_TOKENS`

    def __post_init__(self) -> None:
        self.num_wanted = self.request.max_tokens - self.num_output
        self.root_position = len(self.token_ids) - 1
        self.weight = _WEIGHTS[self.request.latency_class]
        self.kind = self.context_class = context_class(self.request.sampling, DEFAULT_RANKING)
        self.stop_ids = frozenset(self.request.stop_token_ids)
        self.num_total = self.request.num_prompt_tokens + self.request.max_tokens
        self.prefix_hashes = []
        extend_hashes(self.prefix_hashes, self.request.token_ids)

    @classmethod
    def of(cls, request: GenerationRequest, sink: EventSink, suffix: str, submitted_at: float) -> Sequence:
        """A first attempt, whose id differs by `suffix` from those of other clients and routers."""
        key = SequenceKey(f"{request.sequence_id}.{suffix}", FIRST_ATTEMPT)
        return cls(request, sink, key, submitted_at, np.asarray(request.token_ids).tolist())

    @property
    def is_new(self) -> bool:
        """Neither prefilled before nor resubmitted: what the prefix cache has of it is not its own."""
        return self.key.attempt == FIRST_ATTEMPT and self.num_output == 0

    @property
    def num_output(self) -> int:
        return len(self.token_ids) - self.request.num_prompt_tokens

    def tokens_between(self, start: int, end: int) -> TokenIds:
        return np.asarray(self.token_ids[start:end], dtype=np.int32)

    def append(self, token_ids: list[int], now: float) -> tuple[list[int], FinishReason | None]:
        """Commits new tokens up to the first stop token or `max_tokens`; returns those kept, and why it ends here."""
        kept = token_ids[: self.num_wanted]
        finish = FinishReason.LENGTH if len(kept) == self.num_wanted else None
        if self.stop_ids:
            for index, token_id in enumerate(kept):
                if token_id in self.stop_ids:
                    kept, finish = kept[: index + 1], FinishReason.STOP
                    break
        self.token_ids.extend(kept)
        self.num_wanted -= len(kept)
        self.root_position += len(kept)
        if self.first_token_at is None:
            self.first_token_at = now
        self.last_token_at = now
        return kept, finish

    def hash_committed(self) -> None:
        """Brings `prefix_hashes` up to what the target has cached: the next turn of a conversation begins with it."""
        start = len(self.prefix_hashes) * PREFIX_BLOCK_TOKENS
        extend_hashes(self.prefix_hashes, self.token_ids[start : self.cached_len])

    def join_drafter(self, link: DrafterLink) -> None:
        self.drafter = link
        link.num_sequences += 1

    def leave_drafter(self) -> None:
        """Releases what the drafter holds of it, if it still lives."""
        if self.drafter is not None:
            self._release_at_drafter(self.drafter)
            self.drafter.num_sequences -= 1
            self.drafter = None

    @property
    def is_fed(self) -> bool:
        """Whether its features go to its drafter."""
        return self.drafter_knows and self.unfed_from is None

    @property
    def num_unfed_tokens(self) -> int:
        """Whose features the drafter would have to be sent before it can draft."""
        if not self.drafter_knows:
            return self.cached_len
        return 0 if self.unfed_from is None else self.cached_len - self.unfed_from

    def stop_feeding(self) -> None:
        """The drafter keeps what it has; the target keeps the rest, until `feed_again`."""
        self.refill_from = self.unfed_from = self.cached_len

    def feed_again(self) -> None:
        """What the drafter lacks comes with the next round."""
        self.refill_from, self.unfed_from = self.unfed_from, None

    def _release_at_drafter(self, link: DrafterLink) -> None:
        if self.drafter_knows and not link.is_lost:
            link.release(self.key)
        self.drafter_knows = False
        self.drafts = None
        self.refill_from = self.unfed_from = None
        self.skip_drafts = self.num_refills = self.num_unasked = 0
        self.is_on_trial = False

    def next_attempt(self) -> None:
        """Forgets what target and drafter hold: they will be told anew, under a higher attempt."""
        if self.drafter is not None:
            self._release_at_drafter(self.drafter)
        self.key = SequenceKey(self.key.sequence_id, self.key.attempt + 1)
        self.cached_len = self.num_hit_tokens = 0
        self.is_announced = False

    def start_timer(self, expire: Callable[[Sequence], None]) -> None:
        """For the request's own deadline, if it has one."""
        timeout_s = self.request.timeout_ms / 1e3
        if timeout_s > 0:
            self.deadline = self.submitted_at + timeout_s
            self.timer = asyncio.get_running_loop().call_later(timeout_s, expire, self)

    def stop_timers(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.stop_failover_timer()

    def stop_failover_timer(self) -> None:
        if self.failover_timer is not None:
            self.failover_timer.cancel()
            self.failover_timer = None

    def statistics(self, now: float) -> GenerationStatistics:
        admitted = self.admitted_at if self.admitted_at is not None else now
        first = self.first_token_at if self.first_token_at is not None else now
        last = self.last_token_at if self.last_token_at is not None else first
        return GenerationStatistics(
            rounds=self.rounds,
            tree_nodes=self.tree_nodes,
            accepted_tokens=self.accepted_tokens,
            output_tokens=self.num_output,
            queue_ms=(admitted - self.submitted_at) * 1e3,
            time_to_first_token_ms=(first - self.submitted_at) * 1e3,
            decode_ms=(last - first) * 1e3,
            cached_tokens=self.cached_tokens,
        )
