"""The *commit* stage: applies a round's outcomes to its sequences and collects what the clients get."""

from __future__ import annotations

from typing import Protocol

from cluster.router.event_batch import EventBatch
from cluster.router.links import TargetLink
from cluster.router.planning import RoundPlan
from cluster.router.sequence import DONE, RUNNING, Sequence
from cluster.router.timings import RoundTimings
from dflash_core.contracts import OUTCOME_OK, Outcome, OutcomeStatus, PackedOutcomes, Prefill, RoundResult, SequenceKey
from dflash_core.errors import DFlashError, InvalidRequest, ProtocolError


class SequenceKeeper(Protocol):
    """The part of the router that this stage needs."""

    def finish(self, sequence: Sequence) -> None:
        """Takes a sequence out of every table and frees what target and drafter hold of it."""
        ...

    def prefill_again(self, sequence: Sequence, reason: str) -> None:
        """On the same target, under a higher attempt. Bounded by `max_retries`."""
        ...

    def preempt(self, sequence: Sequence) -> None:
        """Puts one whose blocks the target took in front of the queue, under a higher attempt: it did nothing wrong."""
        ...

    def fail(self, sequence: Sequence, error: DFlashError) -> None: ...

    def place_waiting(self) -> None:
        """Starts those of the queue that fit now. Not done by the others of these methods: once a round is enough."""
        ...


def check_result(link: TargetLink, plan: RoundPlan, result: RoundResult) -> PackedOutcomes:
    """Raises `ProtocolError` unless the outcomes are those of the plan, in its order, and the oldest may go on."""
    outcomes = PackedOutcomes.of(result.outcomes)
    wanted, got = [prefill.key for prefill in plan.request.prefills] + [*plan.trees.keys], [*outcomes.keys]
    if wanted != got:
        raise ProtocolError(f"round {result.round_id}: wanted outcomes of {wanted}, got {got}")
    lacking = OutcomeStatus.OUT_OF_BLOCKS
    if not result.preempted and lacking not in outcomes.statuses:
        return outcomes
    out_of_blocks = {key for key, status in zip(got, outcomes.statuses, strict=True) if status is lacking}
    if out_of_blocks != set(result.preempted).intersection(got):
        raise ProtocolError(
            f"round {result.round_id}: {sorted(out_of_blocks)} are out of blocks, {sorted(result.preempted)} preempted"
        )
    if got and len(out_of_blocks) == len(got) and not _others_hold_blocks(link, plan, out_of_blocks):
        # Nobody else holds blocks. Were the oldest on the target preempted, everybody might be, round after round.
        raise ProtocolError(f"round {result.round_id}: all of {got} are out of blocks, nobody can go on")
    return outcomes


def _others_hold_blocks(link: TargetLink, plan: RoundPlan, out_of_blocks: set[SequenceKey]) -> bool:
    """Or may, where another micro-batch has a round in flight or has ended one since this one was sent: first chunks
    may be on the target though no answer has told, and what has ended is released with the next round."""
    micro_batches = {sequence.micro_batch for sequence in plan.sequences}
    return bool(link.releases) or any(
        sequence.key not in out_of_blocks and (sequence.cached_len > 0 or sequence.micro_batch not in micro_batches)
        for sequence in link.sequences
    )


def commit_round(
    link: TargetLink,
    plan: RoundPlan,
    result: RoundResult,
    keeper: SequenceKeeper,
    timings: RoundTimings,
    now: float,
) -> None:
    """Raises `ProtocolError` before anything is committed when the result does not answer the plan."""
    outcomes = check_result(link, plan, result)
    link.free_blocks = result.free_blocks
    _preempt(link, result, keeper, timings)
    events = EventBatch()
    for sequence, chunk, outcome in zip(plan.sequences, plan.request.prefills, outcomes, strict=False):
        if sequence.phase is DONE or sequence.key != outcome.key:
            continue  # cancelled, or sent elsewhere, while the round ran
        if outcome.status is not OUTCOME_OK:
            _not_ok(sequence, outcome.status, outcome.message, keeper)
            continue
        chosen = _commit_prefill(sequence, chunk, outcome, keeper, timings)
        if chosen is not None:
            _hand_out(sequence, [chosen], 0, events, keeper, now)
    _commit_trees(plan, outcomes.after(len(plan.request.prefills)), events, keeper, timings, now)
    timings.rounds += 1
    timings.output_tokens += events.num_tokens
    events.send()
    link.recount_all(plan.sequences)
    keeper.place_waiting()


def _commit_trees(
    plan: RoundPlan,
    outcomes: PackedOutcomes,  # the trees'
    events: EventBatch,
    keeper: SequenceKeeper,
    timings: RoundTimings,
    now: float,
) -> None:
    accepted, end, num_trees, num_nodes = outcomes.token_ids.tolist(), 0, 0, 0
    sequences = plan.sequences[len(plan.request.prefills) :]
    columns = (outcomes.statuses, outcomes.num_accepted, outcomes.bonus_tokens, outcomes.cached_lens)
    for place, (sequence, key, num_rows, status, num_accepted, bonus_token, cached_len) in enumerate(
        zip(sequences, plan.trees.keys, plan.trees.num_rows, *columns, strict=True)
    ):
        begin, end = end, end + num_accepted
        if sequence.phase is DONE or sequence.key != key:
            continue  # cancelled, or sent elsewhere, while the round ran
        if status is not OUTCOME_OK:
            _not_ok(sequence, status, outcomes.messages.get(place, ""), keeper)
            continue
        num_trees, num_nodes = num_trees + 1, num_nodes + num_rows - 1
        root_position = sequence.root_position  # the tree's: of an attempt, it changes here alone
        expected = root_position + num_accepted + 1
        if cached_len != expected or bonus_token < 0:
            keeper.prefill_again(
                sequence,
                f"root at {root_position}, {num_accepted} accepted: expected cached_len {expected} and a "
                f"token, got {cached_len} and {bonus_token}",
            )
            continue
        sequence.rounds += 1
        sequence.tree_nodes += num_rows - 1
        sequence.accepted_tokens += num_accepted
        sequence.cached_len = expected
        _hand_out(sequence, [*accepted[begin:end], bonus_token], num_rows - 1, events, keeper, now)
    timings.tree_sequences += num_trees
    timings.tree_nodes += num_nodes


def _hand_out(
    sequence: Sequence, chosen: list[int], num_nodes: int, events: EventBatch, keeper: SequenceKeeper, now: float
) -> None:
    """Appends the tokens that the target chose."""
    cached_tokens = sequence.cached_tokens if sequence.first_token_at is None else 0
    kept, finish = sequence.append(chosen, now)
    if finish is None:
        events.add(sequence, kept, None, None, num_nodes, cached_tokens)
    else:
        events.add(sequence, kept, finish, sequence.statistics(now), num_nodes, cached_tokens)
        keeper.finish(sequence)


def _preempt(link: TargetLink, result: RoundResult, keeper: SequenceKeeper, timings: RoundTimings) -> None:
    """Who came first is put in front last. Others of the keys have ended, or are at a higher attempt."""
    keys = set(result.preempted)
    for sequence in [sequence for sequence in reversed(link.sequences) if sequence.key in keys]:
        keeper.preempt(sequence)
        timings.preemptions += 1


def _commit_prefill(
    sequence: Sequence, chunk: Prefill, outcome: Outcome, keeper: SequenceKeeper, timings: RoundTimings
) -> int | None:
    """The token that the target chose; None where it was wrong or has not come to one."""
    num_hit_tokens = outcome.num_hit_tokens
    if not chunk.may_hit(num_hit_tokens):
        keeper.prefill_again(
            sequence,
            f"{chunk.num_known} tokens to prefill from {chunk.start} on, {num_hit_tokens} of them cached",
        )
        return None
    computed = chunk.skip(num_hit_tokens)
    end = computed.start + len(computed.token_ids)
    if outcome.cached_len != end or (outcome.bonus_token >= 0) != computed.is_last:
        keeper.prefill_again(
            sequence,
            f"prefill up to {end} (last: {computed.is_last}) answered with cached_len {outcome.cached_len} "
            f"and token {outcome.bonus_token}",
        )
        return None
    timings.prefill_tokens += len(computed.token_ids)
    timings.hit_tokens += num_hit_tokens
    if chunk.start == 0 and sequence.is_new:
        sequence.cached_tokens = min(num_hit_tokens, sequence.request.num_prompt_tokens)
    sequence.cached_len, sequence.num_hit_tokens = end, sequence.num_hit_tokens + num_hit_tokens
    if not computed.is_last:
        return None
    sequence.phase = RUNNING
    sequence.rounds += 1
    return outcome.bonus_token


def _not_ok(sequence: Sequence, status: OutcomeStatus, message: str, keeper: SequenceKeeper) -> None:
    """Each status by its rule (ARCHITECTURE section 8); none concerns the other sequences of the round."""
    reason = f"{status.value}: {message}" if message else status.value
    match status:
        case OutcomeStatus.INVALID:
            keeper.fail(sequence, InvalidRequest(message or "the target refused the request"))
        case _:  # unknown there, or the target stands elsewhere, or holds a higher attempt
            keeper.prefill_again(sequence, reason)
