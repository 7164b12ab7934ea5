"""Whether the candidates of a depth differ: tens of thousands of tokens a round, looked at in one compiled pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dflash_core.contracts import TokenIds
from dflash_core.jit import jit_borrowing

# Of a power of two, so many that candidates of one depth rarely share a place: for those that do all are compared.
_NUM_PLACES = 1 << 14


def has_twins(token_ids: TokenIds, depths: Sequence[int], num_candidates: Sequence[int]) -> bool:
    """Whether any depth has a token twice.

    Args:
        token_ids: `[Σ depth · K]`, as those of `PackedDrafts`. depths, num_candidates: `[drafts]`.
    """
    latest_rows = np.zeros(_NUM_PLACES, np.int32)
    return _has_twins(token_ids, np.array(depths, np.int64), np.array(num_candidates, np.int64), latest_rows)


def warm_up() -> None:
    """Compiles (or loads from the cache) the pass, so that the first answer does not wait for it."""
    has_twins(np.zeros(1, np.int32), [1], [1])


@jit_borrowing
def _has_twins(
    token_ids: npt.NDArray[np.int32],
    depths: npt.NDArray[np.int64],
    widths: npt.NDArray[np.int64],
    latest_rows: npt.NDArray[np.int32],  # [_NUM_PLACES] of zeros: the last row, from 1 on, with a token at this place
) -> bool:
    row, begin = 0, 0
    for draft in range(len(depths)):
        for _ in range(depths[draft]):
            row += 1
            end = begin + widths[draft]
            for i in range(begin, end):
                place = token_ids[i] & (_NUM_PLACES - 1)
                if latest_rows[place] == row:
                    for j in range(begin, i):
                        if token_ids[j] == token_ids[i]:
                            return True
                latest_rows[place] = row
            begin = end
    return False
