"""`TableArray`: a block table as an array, for rounds that would else turn long lists into arrays again and again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_LEAST_SIZE = 64


class TableArray:
    """Follows one list that changes at its end alone."""

    def __init__(self) -> None:
        self._array = np.zeros(_LEAST_SIZE, np.int32)
        self._num_fixed = 0

    def of(self, block_table: list[int], num_fixed: int) -> npt.NDArray[np.int32]:
        """`block_table` as it is now; valid until the next call.

        `num_fixed`: so many blocks at its start will never be others, as those of committed tokens.
        """
        size = len(block_table)
        if size > len(self._array):
            grown = np.zeros(max(size, 2 * len(self._array)), np.int32)
            grown[: self._num_fixed] = self._array[: self._num_fixed]
            self._array = grown
        self._array[self._num_fixed : size] = block_table[self._num_fixed :]
        self._num_fixed = num_fixed
        return self._array[:size]
