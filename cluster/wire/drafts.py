"""Messages between router and drafter, and the context features from target to drafter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cluster.wire.columns import (
    check_columns,
    check_places,
    flat_float32,
    flat_int32,
    keys_from_pb,
    keys_to_pb,
    samplings_from_pb,
    samplings_to_pb,
    to_bytes,
)
from cluster.wire.limits import (
    LARGEST_SIZE,
    MAX_CHUNKS,
    MAX_FEATURE_BYTES,
    MAX_SEQUENCES,
    check_at_most,
    check_text,
)
from cluster.wire.pieces import (
    key_from_pb,
    key_to_pb,
    tensor_from_pb,
    tensor_to_pb,
    times_from_pb,
    times_to_pb,
)
from cluster.wire.twins import has_twins
from dflash_core.contracts import (
    ContextAck,
    ContextChunk,
    ContextStatus,
    DraftBlock,
    DrafterInfo,
    DraftRanking,
    DraftRequest,
    DraftResult,
    PackedDraftBlocks,
    PackedDrafts,
)
from dflash_core.errors import InvalidRequest, ProtocolError
from protos import drafter_pb2

_MOST_LOG_PROBABILITY: Final = 1e-3


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
    for name, least in (
        ("draft_block_size", 2),
        ("num_candidates", 1),
        ("hidden_size", 1),
        ("vocab_size", 1),
        ("num_target_layers", 1),
    ):
        if not least <= getattr(pb, name) <= LARGEST_SIZE:
            raise ProtocolError(f"a drafter's {name} must lie in [{least}, {LARGEST_SIZE}], got {getattr(pb, name)}")
    return DrafterInfo(
        model=check_text("a model", pb.model),
        draft_block_size=pb.draft_block_size,
        num_candidates=pb.num_candidates,
        hidden_size=pb.hidden_size,
        vocab_size=pb.vocab_size,
        num_target_layers=pb.num_target_layers,
        fingerprint=check_text("a fingerprint", pb.fingerprint),
        address=check_text("an address", pb.address),
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
    check_at_most("opens", len(pb.opens), MAX_SEQUENCES)
    check_at_most("releases", len(pb.releases), MAX_SEQUENCES)
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
    packed = PackedDraftBlocks.of(blocks)
    return drafter_pb2.DraftBlocks(
        keys=keys_to_pb(packed.keys),
        root_tokens=packed.root_tokens,
        context_lens=packed.context_lens,
        samplings=samplings_to_pb(packed.samplings),
        uses_noise=[ranking.uses_noise for ranking in packed.rankings],
        truncation_penalties=[ranking.truncation_penalty for ranking in packed.rankings],
    )


def _blocks_from_pb(pb: drafter_pb2.DraftBlocks) -> PackedDraftBlocks:
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
    return PackedDraftBlocks(keys, list(pb.root_tokens), list(pb.context_lens), samplings, rankings)


def draft_result_to_pb(result: DraftResult) -> drafter_pb2.DraftResult:
    drafts = PackedDrafts.of(result.drafts)
    pb = drafter_pb2.DraftResult(
        batch_id=result.batch_id,
        drafts=drafter_pb2.Drafts(
            keys=keys_to_pb(drafts.keys),
            context_lens=drafts.context_lens,
            depths=drafts.depths,
            num_candidates=drafts.num_candidates,
            missing_from=drafts.missing_from,
            errors=drafts.errors,
        ),
        stage_times_us=result.stage_times_us,
    )
    # In place: a message that is given to another one is copied, and nearly all bytes are in these two.
    pb.drafts.token_ids = to_bytes(drafts.token_ids)
    pb.drafts.scores = to_bytes(drafts.scores)
    return pb


def draft_result_from_pb(pb: drafter_pb2.DraftResult) -> DraftResult:
    return DraftResult(pb.batch_id, _drafts_from_pb(pb.drafts), dict(pb.stage_times_us))


def check_drafts(result: DraftResult, info: DrafterInfo) -> None:
    """Raises `ProtocolError` for what a drafter of this `info` cannot have drafted: ids outside its vocabulary, scores
    that are no log-probabilities, too many of either, twins. One such draft would end its sequence, or the round of
    many."""
    drafts = PackedDrafts.of(result.drafts)
    for name, found, most in (
        ("depths", drafts.depths, info.draft_block_size - 1),
        ("num_candidates", drafts.num_candidates, info.num_candidates),
    ):
        largest = max(found, default=0)
        if largest > most:
            raise ProtocolError(f"a drafter with {most} {name} sent {largest}")
    token_ids, scores = drafts.token_ids, drafts.scores
    if len(token_ids) and not 0 <= int(token_ids.min()) <= int(token_ids.max()) < info.vocab_size:
        raise ProtocolError(
            f"candidates must lie in [0, {info.vocab_size}), got {token_ids.min()} to {token_ids.max()}"
        )
    # NaN is neither; minus infinity is what a token has that cannot come. Rounding may lift a sure one above 0.
    if len(scores) and not float(scores.max()) <= _MOST_LOG_PROBABILITY:
        raise ProtocolError(f"scores are log-probabilities, got {scores.max()}")
    if has_twins(token_ids, drafts.depths, drafts.num_candidates):
        raise ProtocolError("the candidates of a depth must differ, got one of them twice")


def _drafts_from_pb(pb: drafter_pb2.Drafts) -> PackedDrafts:
    keys, depths, num_candidates = keys_from_pb(pb.keys), list(pb.depths), list(pb.num_candidates)
    check_columns(keys, context_lens=pb.context_lens, depths=depths, num_candidates=num_candidates)
    check_places("missing_from", pb.missing_from, len(keys))
    check_places("an error", pb.errors, len(keys))
    size = sum([depth * width for depth, width in zip(depths, num_candidates, strict=True)])
    return PackedDrafts(
        keys,
        list(pb.context_lens),
        depths,
        num_candidates,
        # Copies: for arrays that cannot be written to, functions of the router would be compiled anew.
        flat_int32(pb.token_ids, size, len(keys), "candidates").copy(),
        flat_float32(pb.scores, size, len(keys), "scores").copy(),
        dict(pb.missing_from),
        {place: error for place, error in pb.errors.items() if error},
    )


def context_chunk_to_pb(chunk: ContextChunk) -> drafter_pb2.ContextChunk:
    return drafter_pb2.ContextChunk(key=key_to_pb(chunk.key), start=chunk.start, features=tensor_to_pb(chunk.features))


def context_batch_from_pb(pb: drafter_pb2.ContextBatch) -> list[ContextChunk]:
    check_at_most("chunks", len(pb.chunks), MAX_CHUNKS)
    check_at_most("bytes of features", sum(len(chunk.features.data) for chunk in pb.chunks), MAX_FEATURE_BYTES)
    return [context_chunk_from_pb(chunk) for chunk in pb.chunks]


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
