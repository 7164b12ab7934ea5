"""Ragged attention: one function for prefill chunks, draft trees and bidirectional drafter blocks."""

from dflash_core.attention.backend import AttentionBackend
from dflash_core.attention.batch import RaggedBatch, RowGroup
from dflash_core.attention.ragged import ragged_attention

__all__ = ["AttentionBackend", "RaggedBatch", "RowGroup", "ragged_attention"]
