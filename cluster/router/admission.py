"""What a request must fulfil before it may wait: limits of the targets here, named with both values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster.requests import FinishReason, GenerationRequest, check_priority
from dflash_core.contracts import TargetInfo
from dflash_core.errors import InvalidRequest, PromptTooLong

if TYPE_CHECKING:
    from cluster.router import sequence as router_sequence

_MAX_ID_LEN = 256


def check_request(request: GenerationRequest, targets: Sequence[TargetInfo], is_running: bool) -> None:
    """Raises `InvalidRequest` or `PromptTooLong` unless the request could run on at least one of the targets."""
    if is_running:
        raise InvalidRequest(f"sequence_id {request.sequence_id!r} is already running", param="sequence_id")
    if not 0 < len(request.sequence_id) <= _MAX_ID_LEN:
        raise InvalidRequest(
            f"sequence_id must have 1 to {_MAX_ID_LEN} characters, got {len(request.sequence_id)}", param="sequence_id"
        )
    if request.num_prompt_tokens < 1:
        raise InvalidRequest("the prompt must have at least one token, got none", param="prompt")
    num_received = len(request.token_ids) - request.num_prompt_tokens
    if num_received < 0:
        raise InvalidRequest(
            f"num_prompt_tokens is {request.num_prompt_tokens}, but only {len(request.token_ids)} tokens came",
            param="prompt",
        )
    if request.max_tokens < 1:
        raise InvalidRequest(f"max_tokens must be at least 1, got {request.max_tokens}", param="max_tokens")
    if num_received > request.max_tokens:
        raise InvalidRequest(
            f"{num_received} tokens were received already, more than max_tokens {request.max_tokens}",
            param="max_tokens",
        )
    if request.tree_budget is not None and request.tree_budget < 0:
        raise InvalidRequest(f"tree_budget must be 0 or positive, got {request.tree_budget}", param="tree_budget")
    if request.timeout_ms < 0:
        raise InvalidRequest(f"timeout_ms must be 0 (none) or positive, got {request.timeout_ms}", param="timeout_ms")
    check_priority(request.priority)
    _check_vocabulary(request, targets)
    _check_length(request, targets)


def fits(info: TargetInfo, num_total: int) -> bool:
    """Whether a sequence of this length, output included, fits the target when nothing else is on it."""
    return num_total <= min(info.max_model_len, info.num_blocks * info.kv_block_size)


def finished_before(sequence: router_sequence.Sequence) -> FinishReason | None:
    """A resubmission may come with everything already received but the word that it was the end."""
    if sequence.num_wanted <= 0:
        return FinishReason.LENGTH
    if sequence.num_output > 0 and sequence.token_ids[-1] in sequence.stop_ids:
        return FinishReason.STOP
    return None


def _check_vocabulary(request: GenerationRequest, targets: Sequence[TargetInfo]) -> None:
    vocab_size = targets[0].vocab_size  # the same for all targets of a router
    lowest, highest = int(request.token_ids.min()), int(request.token_ids.max())
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise InvalidRequest(f"token id {wrong} is outside the vocabulary of {vocab_size}", param="prompt")


def _check_length(request: GenerationRequest, targets: Sequence[TargetInfo]) -> None:
    num_total = request.num_prompt_tokens + request.max_tokens
    if any(fits(info, num_total) for info in targets):
        return
    what = f"prompt ({request.num_prompt_tokens} tokens) and max_tokens ({request.max_tokens}) make {num_total}"
    longest = max(info.max_model_len for info in targets)
    if num_total > longest:
        raise PromptTooLong(f"{what}, more than the model's context of {longest}", param="prompt")
    most_cached = max(info.num_blocks * info.kv_block_size for info in targets)
    raise PromptTooLong(f"{what}, more than the KV cache of {most_cached} tokens", param="prompt")
