"""Messages between router and target."""

from __future__ import annotations

from cluster.wire.pieces import (
    int32_from_pb,
    int32_to_pb,
    internal_sampling_from_pb,
    key_from_pb,
    key_to_pb,
    rising_from_pb,
    sampling_to_pb,
    times_from_pb,
    times_to_pb,
)
from dflash_core.contracts import (
    DraftTree,
    Outcome,
    OutcomeStatus,
    Prefill,
    Refill,
    RoundRequest,
    RoundResult,
    TargetInfo,
    TreeRows,
)
from dflash_core.errors import ProtocolError
from protos import router_pb2


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
        if getattr(pb, name) < 1:
            raise ProtocolError(f"a target's {name} must be at least 1, got {getattr(pb, name)}")
    return TargetInfo(
        model=pb.model,
        vocab_size=pb.vocab_size,
        hidden_size=pb.hidden_size,
        num_layers=pb.num_layers,
        max_model_len=pb.max_model_len,
        eos_token_ids=tuple(pb.eos_token_ids),
        kv_block_size=pb.kv_block_size,
        num_blocks=pb.num_blocks,
        max_rows=pb.max_rows,
        max_tree_rows=pb.max_tree_rows,
        fingerprint=pb.fingerprint,
        epoch=pb.epoch,
        row_sizes=rising_from_pb("a target's row_sizes", pb.row_sizes),
        round_times_us=times_from_pb(pb.round_times),
    )


def round_request_to_pb(request: RoundRequest) -> router_pb2.RoundRequest:
    return router_pb2.RoundRequest(
        round_id=request.round_id,
        prefills=[_prefill_to_pb(prefill) for prefill in request.prefills],
        trees=[_tree_to_pb(tree) for tree in request.trees],
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
    return RoundRequest(
        round_id=pb.round_id,
        prefills=tuple(_prefill_from_pb(prefill) for prefill in pb.prefills),
        trees=tuple(_tree_from_pb(tree) for tree in pb.trees),
        releases=tuple(key_from_pb(key) for key in pb.releases),
        refills=tuple(
            Refill(key_from_pb(refill.key), refill.from_position, refill.drafter_address) for refill in pb.refills
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
    token_ids, following = int32_from_pb(pb.token_ids), int32_from_pb(pb.following)
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
        drafter_address=pb.drafter_address,
        features_from=pb.features_from,
        following=following,
    )


def _tree_to_pb(rows: TreeRows) -> router_pb2.TreeRows:
    return router_pb2.TreeRows(
        key=key_to_pb(rows.key),
        root_position=rows.root_position,
        token_ids=int32_to_pb(rows.tree.token_ids),
        depths=int32_to_pb(rows.tree.depths),
    )


def _tree_from_pb(pb: router_pb2.TreeRows) -> TreeRows:
    """Sizes only: whether the depths are a tree, and the tokens in the vocabulary, is for the target to say."""
    token_ids, depths = int32_from_pb(pb.token_ids), int32_from_pb(pb.depths)
    if len(token_ids) != len(depths) or not len(token_ids):
        raise ProtocolError(f"a tree has a root and as many depths as tokens, got {len(depths)} and {len(token_ids)}")
    return TreeRows(key_from_pb(pb.key), pb.root_position, DraftTree(token_ids, depths))


def round_result_to_pb(result: RoundResult) -> router_pb2.RoundResult:
    return router_pb2.RoundResult(
        round_id=result.round_id,
        outcomes=[
            router_pb2.Outcome(
                key=key_to_pb(outcome.key),
                status=outcome.status.value,
                token_ids=int32_to_pb(outcome.token_ids),
                bonus_token=outcome.bonus_token,
                cached_len=outcome.cached_len,
                message=outcome.message,
                num_hit_tokens=outcome.num_hit_tokens,
            )
            for outcome in result.outcomes
        ],
        free_blocks=result.free_blocks,
        epoch=result.epoch,
        stage_times_us=result.stage_times_us,
        preempted=[key_to_pb(key) for key in result.preempted],
    )


def round_result_from_pb(pb: router_pb2.RoundResult) -> RoundResult:
    return RoundResult(
        round_id=pb.round_id,
        outcomes=tuple(_outcome_from_pb(outcome) for outcome in pb.outcomes),
        free_blocks=pb.free_blocks,
        epoch=pb.epoch,
        stage_times_us=dict(pb.stage_times_us),
        preempted=tuple(key_from_pb(key) for key in pb.preempted),
    )


def _outcome_from_pb(pb: router_pb2.Outcome) -> Outcome:
    try:
        status = OutcomeStatus(pb.status)
    except ValueError:
        raise ProtocolError(f"unknown outcome status {pb.status!r}") from None
    return Outcome(
        key=key_from_pb(pb.key),
        status=status,
        token_ids=int32_from_pb(pb.token_ids),
        bonus_token=pb.bonus_token,
        cached_len=pb.cached_len,
        message=pb.message,
        num_hit_tokens=pb.num_hit_tokens,
    )
