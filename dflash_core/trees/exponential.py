"""The exponentials of a row, several at a time: most of a search's arithmetic.

exp(x) = 2^k · exp(r) with k the integer next to x / ln 2, so that |r| ≤ ln 2 / 2, where a polynomial does. The C
library computes one at a time, each in three times as long.
"""

from __future__ import annotations

import math

import numpy as np
from numba import literal_unroll

from dflash_core.jit import jit_borrowing, jit_reassociating
from dflash_core.trees.scoring import Doubles, Longs

# The compiler's loops take so many at a time where a processor has the widest vectors, and the rest one by one.
_AT_A_TIME = 32
_PER_LN2 = 1.0 / math.log(2.0)
# ln 2 in two parts, the first with so few bits that its products with k are exact.
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
# 1 / n!, the last one first: what would come before them is less than half a unit in the last place.
_TERMS = tuple(1.0 / math.factorial(n) for n in range(12, -1, -1))
_LARGEST = 700.0  # beyond ± it, results are no normal numbers
_EXPONENT_BIAS, _MANTISSA_BITS = 1023, 52  # of a double


@jit_borrowing
def whole_row(num_values: int) -> int:
    """What `exponentials` has room to write for so many."""
    return -(-num_values // _AT_A_TIME) * _AT_A_TIME


@jit_borrowing
def exponentials(values: Doubles, num_values: int, powers: Longs) -> None:
    """Puts their exponentials in place of the first so many, exact to two units in the last place.

    Values beyond ± 700 count as ± 700. None may be NaN, neither of these nor of what follows up to the end of the whole
    row, which is written too. `powers`: scratch of that size.
    """
    num_written = whole_row(num_values)
    for i in range(num_written):
        value = min(max(values[i], -_LARGEST), _LARGEST)
        k = math.floor(value * _PER_LN2 + 0.5)
        rest = (value - k * _LN2_HIGH) - k * _LN2_LOW
        series = 0.0
        for term in literal_unroll(_TERMS):
            series = series * rest + term
        values[i] = series
        powers[i] = (np.int64(np.int32(k)) + _EXPONENT_BIAS) << _MANTISSA_BITS
    of_two = powers.view(np.float64)
    for i in range(num_written):
        values[i] *= of_two[i]


@jit_reassociating
def sum_of(values: Doubles, num_values: int) -> float:
    """Of the first so many."""
    total = 0.0
    for i in range(num_values):
        total += values[i]
    return total
