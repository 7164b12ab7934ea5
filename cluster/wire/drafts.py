"""Messages between router and drafter, and the context features from target to drafter."""

from __future__ import annotations

import numpy as np

from cluster.wire.pieces import (
    int32_from_pb,
    int32_to_pb,
    internal_sampling_from_pb,
    key_from_pb,
    key_to_pb,
    sampling_to_pb,
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
        blocks=[
            drafter_pb2.DraftBlock(
                key=key_to_pb(block.key),
                root_token=block.root_token,
                context_len=block.context_len,
                sampling=sampling_to_pb(block.sampling),
                uses_noise=block.ranking.uses_noise,
                truncation_penalty=block.ranking.truncation_penalty,
            )
            for block in request.blocks
        ],
        wait_ms=request.wait_ms,
        queued_sequences=request.queued_sequences,
    )


def draft_request_from_pb(pb: drafter_pb2.DraftRequest) -> DraftRequest:
    blocks = tuple(_block_from_pb(block) for block in pb.blocks)
    if len({block.key.sequence_id for block in blocks}) != len(blocks):
        raise ProtocolError("a draft request may hold one block per sequence")
    return DraftRequest(
        batch_id=pb.batch_id,
        opens=tuple((key_from_pb(entry.key), entry.context_len) for entry in pb.opens),
        releases=tuple(key_from_pb(key) for key in pb.releases),
        blocks=blocks,
        wait_ms=pb.wait_ms,
        queued_sequences=pb.queued_sequences,
    )


def _block_from_pb(pb: drafter_pb2.DraftBlock) -> DraftBlock:
    try:
        ranking = DraftRanking(pb.uses_noise, pb.truncation_penalty)
    except InvalidRequest as error:
        raise ProtocolError(error.message) from None
    sampling = internal_sampling_from_pb(pb.sampling)
    return DraftBlock(key_from_pb(pb.key), pb.root_token, pb.context_len, sampling, ranking)


def draft_result_to_pb(result: DraftResult) -> drafter_pb2.DraftResult:
    return drafter_pb2.DraftResult(
        batch_id=result.batch_id,
        drafts=[
            drafter_pb2.Draft(
                key=key_to_pb(draft.key),
                context_len=draft.context_len,
                depth=len(draft.token_ids),
                token_ids=int32_to_pb(draft.token_ids),
                scores=np.ascontiguousarray(draft.scores, dtype="<f4").tobytes(),
                missing_from=draft.missing_from,
                error=draft.error or "",
            )
            for draft in result.drafts
        ],
        stage_times_us=result.stage_times_us,
    )


def draft_result_from_pb(pb: drafter_pb2.DraftResult) -> DraftResult:
    return DraftResult(pb.batch_id, tuple(_draft_from_pb(draft) for draft in pb.drafts), dict(pb.stage_times_us))


def _draft_from_pb(pb: drafter_pb2.Draft) -> Draft:
    flat = int32_from_pb(pb.token_ids)
    if len(pb.scores) != 4 * len(flat) or (len(flat) % pb.depth if pb.depth else len(flat)):
        raise ProtocolError(
            f"a draft of depth {pb.depth} came with {len(flat)} candidates and {len(pb.scores)} bytes of scores"
        )
    shape = (pb.depth, len(flat) // pb.depth if pb.depth else 0)
    return Draft(
        key=key_from_pb(pb.key),
        context_len=pb.context_len,
        token_ids=flat.reshape(shape),
        scores=np.frombuffer(pb.scores, dtype="<f4").astype(np.float32, copy=False).reshape(shape),
        missing_from=pb.missing_from if pb.HasField("missing_from") else None,
        error=pb.error or None,
    )


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
