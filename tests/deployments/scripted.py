"""A stand-in for the routers that answers every request from a script, and a tokenizer of single bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from cluster.requests import EventSink, FinishReason, GenerationRequest, TokenEvent
from dflash_core.contracts import TargetInfo
from dflash_core.errors import DFlashError

INFO = TargetInfo(
    model="tiny",
    vocab_size=256,
    hidden_size=8,
    num_layers=2,
    max_model_len=32,
    eos_token_ids=(0,),
    kv_block_size=4,
    num_blocks=64,
    max_rows=64,
    max_tree_rows=64,
    fingerprint="w:f",
)


def _bytes_tokenizer() -> Tokenizer:
    """One token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


TOKENIZER = _bytes_tokenizer()


class ScriptedRouters:
    """Answers every request with the same text, in the given pieces; the first piece is the prefill's token."""

    def __init__(
        self, pieces: Sequence[str] = ("a", "bc"), error: DFlashError | None = None, cached_tokens: int = 0
    ) -> None:
        self.info: TargetInfo | None = INFO
        self.pieces = pieces
        self.error = error
        self.cached_tokens = cached_tokens
        self.requests: list[GenerationRequest] = []
        self.cancelled: list[str] = []
        self.submitted = asyncio.Event()

    def submit(self, request: GenerationRequest, sink: EventSink) -> None:
        self.requests.append(request)
        self.submitted.set()
        for index, piece in enumerate(self.pieces):
            ids = np.asarray(TOKENIZER.encode(piece).ids, dtype=np.int32)
            is_last = index == len(self.pieces) - 1 and self.error is None
            finish = FinishReason.LENGTH if is_last else None
            cached_tokens = self.cached_tokens if index == 0 else 0
            event = TokenEvent(
                request.sequence_id, ids, finish, num_tree_nodes=4 * (index > 0), cached_tokens=cached_tokens
            )
            sink.put([event])
        if self.error is not None:
            sink.put([TokenEvent(request.sequence_id, np.empty(0, np.int32), error=self.error)])

    def cancel(self, sequence_id: str) -> None:
        self.cancelled.append(sequence_id)
