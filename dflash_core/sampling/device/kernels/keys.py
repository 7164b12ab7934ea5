"""A value and its vocabulary id as one int64, so that a maximum of integers is an argmax with ties to the lowest id.

High half: the fp32 bits, made to rise with the value. Low half: 0x7fffffff − id. A maximum can be taken in any order,
over parts of a vocabulary as well. NaN, whatever its bits, lies above all numbers: so one NaN shows in the maximum.
"""

import triton
import triton.language as tl

LARGEST_ID = tl.constexpr(0x7FFFFFFF)
NO_KEY = tl.constexpr(-(2**63))
LEAST_KEY = tl.constexpr(-(2**63) + 1)  # from here on lie all keys


@triton.jit
def pack(values, ids):
    """int64 keys of fp32 `values` and int32 `ids`; −0 counts as 0."""
    numbers = tl.where(values == values, values + 0.0, float("nan"))
    bits = numbers.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & LARGEST_ID)
    return (ordered.to(tl.int64) << 32) | (ids ^ LARGEST_ID).to(tl.int64)


@triton.jit
def value_of(keys):
    ordered = (keys >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & LARGEST_ID)).to(tl.float32, bitcast=True)


@triton.jit
def id_of(keys):
    return (keys & LARGEST_ID).to(tl.int32) ^ LARGEST_ID


@triton.jit
def first_key(value):
    """The least key of any id with this value."""
    return pack(value, tl.full([], LARGEST_ID, tl.int32))


@triton.jit
def last_key(value):
    """The greatest key of any id with this value."""
    return pack(value, tl.full([], 0, tl.int32))


@triton.jit
def token_of(key):
    """int64: the id of the winner, or −1 where that is a NaN or −inf."""
    value = value_of(key)
    return tl.where((value == value) & (value > float("-inf")), id_of(key).to(tl.int64), -1)


@triton.jit
def middle_of(low, high):
    """The average, rounded down, of two int64 whose sum may overflow."""
    return (low & high) + ((low ^ high) >> 1)


@triton.jit
def least_of_best(keys, num_best):
    """A number from which on there are just `num_best` of the `keys`, or all of them if they are fewer.

    Args:
        keys: int64 `[n]`, each but `NO_KEY` once.
    """
    low = tl.full([], LEAST_KEY, tl.int64)
    high = tl.max(keys, 0) + 1
    count = tl.sum((keys >= low).to(tl.int32), 0)
    while count > num_best:
        middle = middle_of(low, high)
        above = tl.sum((keys >= middle).to(tl.int32), 0)
        if above >= num_best:
            low = middle
            count = above
        else:
            high = middle
    return low
