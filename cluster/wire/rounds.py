"""Messages between router and target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from cluster.wire.columns import (
    check_columns,
    check_places,
    flat_int32,
    keys_from_pb,
    keys_to_pb,
    to_bytes,
)
from cluster.wire.limits import (
    LARGEST_SIZE,
    MAX_SEQUENCES,
    MAX_STOP_TOKENS,
    check_address,
    check_at_most,
    check_text,
)
from cluster.wire.pieces import (
    int32_to_pb,
    internal_sampling_from_pb,
    key_from_pb,
    key_to_pb,
    rising_from_pb,
    sampling_to_pb,
    times_from_pb,
    times_to_pb,
    token_ids_from_pb,
)
from dflash_core.contracts import (
    Outcome,
    OutcomeStatus,
    PackedOutcomes,
    PackedTreeRows,
    Prefill,
    Refill,
    RoundRequest,
    RoundResult,
    TargetInfo,
    TreeRows,
)
from dflash_core.errors import ProtocolError
from protos import router_pb2

NO_TOKEN: Final = -1
_STATUSES = {status.value: status for status in OutcomeStatus}


def target_info_to_pb(info: TargetInfo) -> router_pb2.TargetInfo:
    return router_pb2.TargetInfo(
        model=info.model,
        vocab_size=info.vocab_size,
        hidden_size=info.hidden_size,
        num_layers=info.num_layers,
        max_model_len=info.max_model_len,
        eos_token_ids=info.eos_token_ids,
        kv_block_size=info.kv_block_size,
        num_blocks=info.num_blocks,
        max_rows=info.max_rows,
        max_tree_rows=info.max_tree_rows,
        fingerprint=info.fingerprint,
        epoch=info.epoch,
        row_sizes=info.row_sizes,
        round_times=times_to_pb(info.round_times_us),
    )


def target_info_from_pb(pb: router_pb2.TargetInfo) -> TargetInfo:
    for name in ("vocab_size", "max_model_len", "kv_block_size", "num_blocks", "max_rows", "max_tree_rows"):
        if not 1 <= getattr(pb, name) <= LARGEST_SIZE:
            raise ProtocolError(f"a target's {name} must lie in [1, {LARGEST_SIZE}], got {getattr(pb, name)}")
    for name in ("eos_token_ids", "row_sizes", "round_times"):
        check_at_most(name, len(getattr(pb, name)), MAX_STOP_TOKENS)
    return TargetInfo(
        model=check_text("a model", pb.model),
        vocab_size=pb.vocab_size,
        hidden_size=pb.hidden_size,
        num_layers=pb.num_layers,
        max_model_len=pb.max_model_len,
        eos_token_ids=tuple(pb.eos_token_ids),
        kv_block_size=pb.kv_block_size,
        num_blocks=pb.num_blocks,
        max_rows=pb.max_rows,
        max_tree_rows=pb.max_tree_rows,
        fingerprint=check_text("a fingerprint", pb.fingerprint),
        epoch=pb.epoch,
        row_sizes=rising_from_pb("a target's row_sizes", pb.row_sizes),
        round_times_us=times_from_pb(pb.round_times),
    )


def round_request_to_pb(request: RoundRequest) -> router_pb2.RoundRequest:
    return router_pb2.RoundRequest(
        round_id=request.round_id,
        prefills=[_prefill_to_pb(prefill) for prefill in request.prefills],
        trees=_trees_to_pb(request.trees),
        releases=[key_to_pb(key) for key in request.releases],
        refills=[
            router_pb2.Refill(
                key=key_to_pb(refill.key), from_position=refill.from_position, drafter_address=refill.drafter_address
            )
            for refill in request.refills
        ],
        timeout_ms=request.timeout_ms,
        queued_sequences=request.queued_sequences,
    )


def round_request_from_pb(pb: router_pb2.RoundRequest) -> RoundRequest:
    if pb.timeout_ms < 1:
        raise ProtocolError(f"a round's timeout_ms must be at least 1, got {pb.timeout_ms}")
    for name in ("prefills", "releases", "refills"):
        check_at_most(name, len(getattr(pb, name)), MAX_SEQUENCES)
    return RoundRequest(
        round_id=pb.round_id,
        prefills=tuple(_prefill_from_pb(prefill) for prefill in pb.prefills),
        trees=_trees_from_pb(pb.trees),
        releases=tuple(key_from_pb(key) for key in pb.releases),
        refills=tuple(
            Refill(key_from_pb(refill.key), refill.from_position, check_address(refill.drafter_address))
            for refill in pb.refills
        ),
        timeout_ms=pb.timeout_ms,
        queued_sequences=pb.queued_sequences,
    )


def _prefill_to_pb(prefill: Prefill) -> router_pb2.Prefill:
    return router_pb2.Prefill(
        key=key_to_pb(prefill.key),
        token_ids=int32_to_pb(prefill.token_ids),
        start=prefill.start,
        is_last=prefill.is_last,
        num_prompt_tokens=prefill.num_prompt_tokens,
        sampling=sampling_to_pb(prefill.sampling),
        drafter_address=prefill.drafter_address,
        features_from=prefill.features_from,
        following=int32_to_pb(prefill.following),
    )


def _prefill_from_pb(pb: router_pb2.Prefill) -> Prefill:
    token_ids, following = token_ids_from_pb(pb.token_ids), token_ids_from_pb(pb.following)
    if not len(token_ids):
        raise ProtocolError(f"a prefill chunk must have tokens; that of {pb.key.sequence_id!r} has none")
    if len(following) and (pb.start > 0 or pb.is_last):
        raise ProtocolError(
            f"only a first chunk that is not the last tells what follows; that of {pb.key.sequence_id!r} at {pb.start} "
            f"(last: {pb.is_last}) has {len(following)} tokens after it"
        )
    return Prefill(
        key=key_from_pb(pb.key),
        token_ids=token_ids,
        start=pb.start,
        is_last=pb.is_last,
        num_prompt_tokens=pb.num_prompt_tokens,
        sampling=internal_sampling_from_pb(pb.sampling),
        drafter_address=check_address(pb.drafter_address),
        features_from=pb.features_from,
        following=following,
    )


def _trees_to_pb(trees: Sequence[TreeRows]) -> router_pb2.Trees:
    packed = PackedTreeRows.of(trees)
    return router_pb2.Trees(
        keys=keys_to_pb(packed.keys),
        root_positions=packed.root_positions,
        num_rows=packed.num_rows,
        token_ids=to_bytes(packed.token_ids),
        depths=to_bytes(packed.depths),
    )


def _trees_from_pb(pb: router_pb2.Trees) -> PackedTreeRows:
    """Sizes only: whether the depths are a tree, and the tokens in the vocabulary, is for the target to say."""
    keys, num_rows = keys_from_pb(pb.keys), list(pb.num_rows)
    check_columns(keys, root_positions=pb.root_positions, num_rows=num_rows)
    if 0 in num_rows:
        raise ProtocolError(f"every tree has a root; that of {keys[num_rows.index(0)].sequence_id!r} has no rows")
    token_ids = flat_int32(pb.token_ids, sum(num_rows), len(keys), "token_ids")
    depths = flat_int32(pb.depths, sum(num_rows), len(keys), "depths")
    return PackedTreeRows(keys, list(pb.root_positions), num_rows, token_ids, depths)


def round_result_to_pb(result: RoundResult) -> router_pb2.RoundResult:
    return router_pb2.RoundResult(
        round_id=result.round_id,
        outcomes=_outcomes_to_pb(result.outcomes),
        free_blocks=result.free_blocks,
        epoch=result.epoch,
        stage_times_us=result.stage_times_us,
        preempted=[key_to_pb(key) for key in result.preempted],
    )


def check_round_result(pb: router_pb2.RoundResult, info: TargetInfo) -> None:
    """Raises `ProtocolError` for what a target of this `info` cannot have answered: tokens outside its vocabulary, more
    free blocks than it has."""
    if pb.free_blocks > info.num_blocks:
        raise ProtocolError(f"a target of {info.num_blocks} blocks says that {pb.free_blocks} are free")
    if len(pb.outcomes.token_ids) % 4:
        raise ProtocolError(f"token_ids of {len(pb.outcomes.token_ids)} bytes are no array")
    accepted, bonus_tokens = np.frombuffer(pb.outcomes.token_ids, "<i4"), np.array(pb.outcomes.bonus_tokens, np.int64)
    for tokens, least in ((accepted, 0), (bonus_tokens, NO_TOKEN)):
        if not len(tokens):
            continue
        smallest, largest = int(tokens.min()), int(tokens.max())
        if smallest < least or largest >= info.vocab_size:
            raise ProtocolError(
                f"a target's tokens must lie in [{least}, {info.vocab_size}), got {smallest} to {largest}"
            )


def round_result_from_pb(pb: router_pb2.RoundResult) -> RoundResult:
    check_at_most("preempted sequences", len(pb.preempted), MAX_SEQUENCES)
    return RoundResult(
        round_id=pb.round_id,
        outcomes=_outcomes_from_pb(pb.outcomes),
        free_blocks=pb.free_blocks,
        epoch=pb.epoch,
        stage_times_us=dict(pb.stage_times_us),
        preempted=tuple(key_from_pb(key) for key in pb.preempted),
    )


def _outcomes_to_pb(outcomes: Sequence[Outcome]) -> router_pb2.Outcomes:
    packed = PackedOutcomes.of(outcomes)
    return router_pb2.Outcomes(
        keys=keys_to_pb(packed.keys),
        statuses=[status.value for status in packed.statuses],
        num_accepted=packed.num_accepted,
        token_ids=to_bytes(packed.token_ids),
        bonus_tokens=packed.bonus_tokens,
        cached_lens=packed.cached_lens,
        num_hit_tokens=packed.num_hit_tokens,
        messages=packed.messages,
    )


def _outcomes_from_pb(pb: router_pb2.Outcomes) -> PackedOutcomes:
    keys, num_accepted = keys_from_pb(pb.keys), list(pb.num_accepted)
    check_columns(
        keys,
        statuses=pb.statuses,
        num_accepted=num_accepted,
        bonus_tokens=pb.bonus_tokens,
        cached_lens=pb.cached_lens,
        num_hit_tokens=pb.num_hit_tokens,
    )
    check_places("a message", pb.messages, len(keys))
    try:
        statuses = [_STATUSES[status] for status in pb.statuses]
    except KeyError as error:
        raise ProtocolError(f"unknown outcome status {error.args[0]!r}") from None
    return PackedOutcomes(
        keys,
        statuses,
        num_accepted,
        flat_int32(pb.token_ids, sum(num_accepted), len(keys), "token_ids"),
        list(pb.bonus_tokens),
        list(pb.cached_lens),
        list(pb.num_hit_tokens),
        dict(pb.messages),
    )
