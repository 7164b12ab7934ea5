"""Between router and target: rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple, Protocol

import numpy as np

from dflash_core.contracts.common import DraftTree, SamplingParams, SequenceKey, TokenIds


def _no_tokens() -> TokenIds:
    return np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Prefill:
    """One chunk of a sequence's prompt (or of prompt and committed tokens, after a failover or preemption).

    A chunk with `start` 0 opens the attempt on the target. The last chunk makes the target choose the token at
    position `start + len(token_ids)`: the first root. The first one tells the tokens after it too, so that a prefix
    that the target has cached may be longer than the chunk: then as many rows are computed, from its end on.

        known    | token_ids | following          |      start 0
        cached   | num_hit_tokens    |                   whole blocks, at least one token less than is known
        computed                     | token_ids  |      what `skip(num_hit_tokens)` returns
    """

    key: SequenceKey
    token_ids: TokenIds  # [num_tokens], at positions start … start + num_tokens − 1
    start: int
    is_last: bool
    num_prompt_tokens: int  # of the client's prompt; tokens beyond it were generated before a failover
    sampling: SamplingParams
    drafter_address: str = ""  # where this sequence's context features go; "" for nowhere
    features_from: int = 0  # first position whose feature the drafter lacks
    following: TokenIds = field(default_factory=_no_tokens)  # [n] the rest to be prefilled; none but on a first chunk

    @property
    def num_known(self) -> int:
        """How many `known_tokens` there are."""
        return len(self.token_ids) + len(self.following)

    def may_hit(self, num_hit_tokens: int) -> bool:
        """Whether a prefix cache may have so many: a row at least is computed, and only a first chunk can hit."""
        return 0 <= num_hit_tokens < (self.num_known if self.start == 0 else 1)

    @property
    def known_tokens(self) -> TokenIds:
        """Of the positions from `start` on."""
        return np.concatenate([self.token_ids, self.following]) if len(self.following) else self.token_ids

    def skip(self, num_hit_tokens: int) -> Prefill:
        """The chunk that is computed where the first `num_hit_tokens` need not be. Only for a first chunk."""
        if num_hit_tokens == 0:
            return self
        known = self.known_tokens
        assert self.start == 0 < num_hit_tokens < len(known), f"{num_hit_tokens} of {len(known)} from {self.start} on"
        end = min(num_hit_tokens + len(self.token_ids), len(known))
        return replace(
            self,
            token_ids=known[num_hit_tokens:end],
            start=num_hit_tokens,
            is_last=end == len(known) and (self.is_last or len(self.following) > 0),
            following=known[end:],
        )


class TreeRows(NamedTuple):
    """A draft tree to verify. Row 0 must be the target's own last bonus token, `root_position` its `cached_len`."""

    key: SequenceKey
    root_position: int
    tree: DraftTree


@dataclass(frozen=True, slots=True)
class Refill:
    """Asks the target to send a sequence's features from `from_position` on, now and henceforth, to a drafter; to none
    where the address is empty, until another refill."""

    key: SequenceKey
    from_position: int
    drafter_address: str


@dataclass(frozen=True, slots=True)
class RoundRequest:
    """One target pass. Releases and refills are done before the forward."""

    round_id: int
    prefills: tuple[Prefill, ...] = ()
    trees: Sequence[TreeRows] = ()  # a router's are `PackedTreeRows`
    releases: tuple[SequenceKey, ...] = ()
    refills: tuple[Refill, ...] = ()
    timeout_ms: int = 60_000
    queued_sequences: int = 0


class OutcomeStatus(Enum):
    """How a sequence fared in a round; anything but OK concerns that sequence alone."""

    OK = "ok"
    UNKNOWN_SEQUENCE = "unknown_sequence"  # not on this target: prefill again
    STALE_ATTEMPT = "stale_attempt"  # a higher attempt is here: drop
    MISMATCH = "mismatch"  # root or position differ from the target's: prefill again
    OUT_OF_BLOCKS = "out_of_blocks"  # the sequence was preempted, and is one of `RoundResult.preempted`
    INVALID = "invalid"  # malformed tree, token out of the vocabulary, too long: fail the request


OUTCOME_OK = OutcomeStatus.OK
"""For what is asked once a round and sequence: an enum's attribute takes ten times as long to look up."""


class Outcome(NamedTuple):
    """What a round did for one sequence: tokens committed, and where it stands."""

    key: SequenceKey
    status: OutcomeStatus
    token_ids: TokenIds  # [num_accepted] accepted draft tokens; empty for a prefill chunk
    bonus_token: int  # the token after them, the next root; −1 where none was chosen (not the last chunk, not OK)
    cached_len: int  # tokens in the target's KV, which is the root's position
    message: str = ""  # says more where status is not OK
    num_hit_tokens: int = 0  # of a first chunk: tokens of cached_len that the prefix cache had

    @property
    def num_accepted(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class RoundResult:
    """`preempted` sequences are no longer on the target: their blocks went to sequences that it opened before them,
    or there were none for their rows. The oldest that the target holds is never among them."""

    round_id: int
    outcomes: Sequence[Outcome]  # prefills first, then trees, in the order of the request; mostly `PackedOutcomes`
    free_blocks: int  # held by no sequence; findable prefixes may be in them
    epoch: int
    stage_times_us: dict[str, int] = field(default_factory=dict)
    preempted: tuple[SequenceKey, ...] = ()  # with rows in this round or without


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """What a router must know of a target; sent once, with the first message of its stream."""

    model: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    max_model_len: int  # tokens of prompt and output together
    eos_token_ids: tuple[int, ...]
    kv_block_size: int
    num_blocks: int
    max_rows: int  # most rows of one round: prefill chunks and trees together
    max_tree_rows: int  # most tree rows of one round
    fingerprint: str  # "weights:fc": of the target's weights and of the drafter's fc it applies; empty fc: no features
    epoch: int = 0
    row_sizes: tuple[int, ...] = ()  # rising; a round's rows are padded to the next of them. Empty: not padded
    round_times_us: tuple[tuple[int, int], ...] = ()  # (rows, time) of rounds measured at the start, rows rising

    @property
    def weights_fingerprint(self) -> str:
        """Targets of one router must share it: a sequence may move between them."""
        return self.fingerprint.partition(":")[0]

    @property
    def fc_fingerprint(self) -> str:
        """Must equal the `DrafterInfo.fingerprint` of the drafters that get features from here; "" sends none."""
        return self.fingerprint.partition(":")[2]


class Target(Protocol):
    """A target as the router sees it, in process or over gRPC."""

    @property
    def info(self) -> TargetInfo: ...

    async def run_round(self, request: RoundRequest) -> RoundResult:
        """Raises `Unavailable` when the target is gone; the sequences it held are gone with it."""
        ...
