"""Messages between router and drafter, and the context features from target to drafter."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.wire.columns import (
    check_columns,
    check_places,
    joined_float32,
    joined_int32,
    keys_from_pb,
    keys_to_pb,
    matrices_float32,
    matrices_int32,
    samplings_from_pb,
    samplings_to_pb,
    texts_by_place,
)
from cluster.wire.pieces import (
    key_from_pb,
    key_to_pb,
    tensor_from_pb,
    tensor_to_pb,
    times_from_pb,
    times_to_pb,
)
from dflash_core.contracts import (
    ContextAck,
    ContextChunk,
    ContextStatus,
    Draft,
    DraftBlock,
    DrafterInfo,
    DraftRanking,
    DraftRequest,
    DraftResult,
)
from dflash_core.errors import InvalidRequest, ProtocolError
from protos import drafter_pb2


def drafter_info_to_pb(info: DrafterInfo) -> drafter_pb2.DrafterInfo:
    return drafter_pb2.DrafterInfo(
        model=info.model,
        draft_block_size=info.draft_block_size,
        num_candidates=info.num_candidates,
        hidden_size=info.hidden_size,
        vocab_size=info.vocab_size,
        num_target_layers=info.num_target_layers,
        fingerprint=info.fingerprint,
        address=info.address,
        draft_times=times_to_pb(info.draft_times_us),
    )


def drafter_info_from_pb(pb: drafter_pb2.DrafterInfo) -> DrafterInfo:
    return DrafterInfo(
        model=pb.model,
        draft_block_size=pb.draft_block_size,
        num_candidates=pb.num_candidates,
        hidden_size=pb.hidden_size,
        vocab_size=pb.vocab_size,
        num_target_layers=pb.num_target_layers,
        fingerprint=pb.fingerprint,
        address=pb.address,
        draft_times_us=times_from_pb(pb.draft_times),
    )


def draft_request_to_pb(request: DraftRequest) -> drafter_pb2.DraftRequest:
    return drafter_pb2.DraftRequest(
        batch_id=request.batch_id,
        opens=[drafter_pb2.Open(key=key_to_pb(key), context_len=length) for key, length in request.opens],
        releases=[key_to_pb(key) for key in request.releases],
        blocks=_blocks_to_pb(request.blocks),
        wait_ms=request.wait_ms,
        queued_sequences=request.queued_sequences,
        num_candidates=request.num_candidates,
    )


def draft_request_from_pb(pb: drafter_pb2.DraftRequest) -> DraftRequest:
    return DraftRequest(
        batch_id=pb.batch_id,
        opens=tuple((key_from_pb(entry.key), entry.context_len) for entry in pb.opens),
        releases=tuple(key_from_pb(key) for key in pb.releases),
        blocks=_blocks_from_pb(pb.blocks),
        wait_ms=pb.wait_ms,
        queued_sequences=pb.queued_sequences,
        num_candidates=pb.num_candidates,
    )


def _blocks_to_pb(blocks: Sequence[DraftBlock]) -> drafter_pb2.DraftBlocks:
    return drafter_pb2.DraftBlocks(
        keys=keys_to_pb([block.key for block in blocks]),
        root_tokens=[block.root_token for block in blocks],
        context_lens=[block.context_len for block in blocks],
        samplings=samplings_to_pb([block.sampling for block in blocks]),
        uses_noise=[block.ranking.uses_noise for block in blocks],
        truncation_penalties=[block.ranking.truncation_penalty for block in blocks],
    )


def _blocks_from_pb(pb: drafter_pb2.DraftBlocks) -> tuple[DraftBlock, ...]:
    keys, samplings = keys_from_pb(pb.keys), samplings_from_pb(pb.samplings)
    check_columns(
        keys,
        root_tokens=pb.root_tokens,
        context_lens=pb.context_lens,
        samplings=samplings,
        uses_noise=pb.uses_noise,
        truncation_penalties=pb.truncation_penalties,
    )
    if len(set(pb.keys.sequence_ids)) != len(keys):
        raise ProtocolError("a draft request may hold one block per sequence")
    try:
        rankings = list(map(DraftRanking, pb.uses_noise, pb.truncation_penalties))
    except InvalidRequest as error:
        raise ProtocolError(error.message) from None
    return tuple(map(DraftBlock, keys, pb.root_tokens, pb.context_lens, samplings, rankings))


def draft_result_to_pb(result: DraftResult) -> drafter_pb2.DraftResult:
    drafts = result.drafts
    pb = drafter_pb2.DraftResult(
        batch_id=result.batch_id,
        drafts=drafter_pb2.Drafts(
            keys=keys_to_pb([draft.key for draft in drafts]),
            context_lens=[draft.context_len for draft in drafts],
            depths=[draft.token_ids.shape[0] for draft in drafts],
            num_candidates=[draft.token_ids.shape[1] for draft in drafts],
            missing_from={
                place: draft.missing_from for place, draft in enumerate(drafts) if draft.missing_from is not None
            },
            errors=texts_by_place(draft.error or "" for draft in drafts),
        ),
        stage_times_us=result.stage_times_us,
    )
    # In place: a message that is given to another one is copied, and nearly all bytes are in these two.
    pb.drafts.token_ids = joined_int32([draft.token_ids for draft in drafts])
    pb.drafts.scores = joined_float32([draft.scores for draft in drafts])
    return pb


def draft_result_from_pb(pb: drafter_pb2.DraftResult) -> DraftResult:
    return DraftResult(pb.batch_id, _drafts_from_pb(pb.drafts), dict(pb.stage_times_us))


def _drafts_from_pb(pb: drafter_pb2.Drafts) -> tuple[Draft, ...]:
    keys = keys_from_pb(pb.keys)
    check_columns(keys, context_lens=pb.context_lens, depths=pb.depths, num_candidates=pb.num_candidates)
    shapes = list(zip(pb.depths, pb.num_candidates, strict=True))
    check_places("missing_from", pb.missing_from, len(keys))
    check_places("an error", pb.errors, len(keys))
    token_ids = matrices_int32(pb.token_ids, shapes, "candidates")
    scores = matrices_float32(pb.scores, shapes, "scores")
    drafts = list(map(Draft, keys, pb.context_lens, token_ids, scores))
    for place, missing_from in pb.missing_from.items():
        drafts[place] = drafts[place]._replace(missing_from=missing_from)
    for place, error in pb.errors.items():
        drafts[place] = drafts[place]._replace(error=error or None)
    return tuple(drafts)


def context_chunk_to_pb(chunk: ContextChunk) -> drafter_pb2.ContextChunk:
    return drafter_pb2.ContextChunk(key=key_to_pb(chunk.key), start=chunk.start, features=tensor_to_pb(chunk.features))


def context_chunk_from_pb(pb: drafter_pb2.ContextChunk) -> ContextChunk:
    features = tensor_from_pb(pb.features)
    if len(features.shape) != 2 or features.shape[0] < 1:
        raise ProtocolError(f"context features are [num_tokens, hidden_size], got shape {features.shape}")
    return ContextChunk(key_from_pb(pb.key), pb.start, features)


def context_ack_to_pb(ack: ContextAck) -> drafter_pb2.ContextAck:
    return drafter_pb2.ContextAck(key=key_to_pb(ack.key), status=ack.status.value, context_len=ack.context_len)


def context_ack_from_pb(pb: drafter_pb2.ContextAck) -> ContextAck:
    try:
        status = ContextStatus(pb.status)
    except ValueError:
        raise ProtocolError(f"unknown context status {pb.status!r}") from None
    return ContextAck(key_from_pb(pb.key), status, pb.context_len)
