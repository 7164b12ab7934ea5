"""What every message speaks of: sequences, sampling, trees, raw tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dflash_core.errors import InvalidRequest

TokenIds = npt.NDArray[np.int32]


class SequenceKey(NamedTuple):
    """Names one attempt at one sequence; a lower attempt is dropped everywhere (ARCHITECTURE section 8)."""

    sequence_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. `seed` is the 64-bit seed of this output (`dflash_core.sampling.output_seed`).

    `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 and `min_p` 0 are off.
    Raises `InvalidRequest` for a value outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 100.0:
            raise InvalidRequest(f"temperature must lie in [0, 100], got {self.temperature}", param="temperature")
        if not 0 <= self.top_k < 2**32:
            raise InvalidRequest(f"top_k must be 0 (off) or positive, below 2**32, got {self.top_k}", param="top_k")
        if not 0.0 < self.top_p <= 1.0:
            raise InvalidRequest(f"top_p must lie in (0, 1], got {self.top_p}", param="top_p")
        if not 0.0 <= self.min_p <= 1.0:
            raise InvalidRequest(f"min_p must lie in [0, 1], got {self.min_p}", param="min_p")
        if not 0 <= self.seed < 2**64:
            raise InvalidRequest(f"seed must be an unsigned 64-bit number, got {self.seed}", param="seed")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0


class DraftTree(NamedTuple):
    """A draft tree in depth-first preorder, likeliest child first; row 0 is the root at depth 0.

    The two arrays say everything: the parent of a row is the last earlier row with one depth less.
    """

    token_ids: TokenIds  # [num_rows]
    depths: npt.NDArray[np.int32]  # [num_rows]

    @property
    def num_rows(self) -> int:
        return len(self.token_ids)

    @property
    def num_nodes(self) -> int:
        """Nodes without the root, as `tree_budget` counts them."""
        return len(self.token_ids) - 1


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor as bytes, little-endian and contiguous, with its dtype's torch name ("float32", "bfloat16", …)."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview
