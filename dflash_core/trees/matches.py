"""How a sequence went on where it had a path's last tokens before."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dflash_core.jit import jit_borrowing
from dflash_core.trees.scoring import LONGEST_MATCH, SHORTEST_MATCH, Ints, Longs

Bytes = npt.NDArray[np.uint8]
Shorts = npt.NDArray[np.int16]

# Of the positions in a bucket, the latest are looked at. The end of the sequence, which has no continuation, is one.
MOST_VISITED = 5


class Histories(NamedTuple):
    """The arrays of `TokenHistories`."""

    tokens: Ints  # [slots, window], committed
    lens: Longs  # [slots]
    marks: Bytes  # [slots, buckets / 8], a bit per bigram bucket: is there any position in it?
    links: Shorts  # [slots, window], 1 + the position before with the same bigram bucket; 0 ends the chain
    heads: Shorts  # [slots, buckets], 1 + the latest position of the bucket; 0: none


@jit_borrowing
def bigram_bucket(before: int, token: int, num_buckets: int) -> int:
    """`num_buckets` is a power of two."""
    return ((before * 1_000_003) ^ (token * 7_919)) & (num_buckets - 1)


@jit_borrowing
def is_marked(marks: Bytes, bucket: int) -> bool:
    """Most bigrams are new to a sequence, and its bits stay in a processor's cache where `heads` do not."""
    return bool((marks[bucket >> 3] >> (bucket & 7)) & 1)


@jit_borrowing
def longest_match(
    tail: Ints,  # [LONGEST_MATCH], the path's last token first; −1 where there is none
    tokens: Ints,  # [window], committed
    num_tokens: int,
    links: Shorts,  # [window]
    heads: Shorts,  # [buckets]
) -> tuple[int, int]:
    """The token that followed where the sequence last had most of the tail's tokens, and how many; (−1, 0) for none."""
    best_len, best_token = 0, -1
    if tail[1] < 0:
        return best_token, best_len
    position = heads[bigram_bucket(tail[1], tail[0], len(heads))] - 1
    num_visited = 0
    while position >= 0 and num_visited < MOST_VISITED:
        num_visited += 1
        # Another bigram may share the bucket.
        if position + 1 < num_tokens and tokens[position] == tail[0] and tokens[position - 1] == tail[1]:
            match_len = SHORTEST_MATCH
            while (
                match_len < LONGEST_MATCH and position >= match_len and tokens[position - match_len] == tail[match_len]
            ):
                match_len += 1
            if match_len > best_len:
                best_len, best_token = match_len, tokens[position + 1]
                if best_len == LONGEST_MATCH:
                    break
        position = links[position] - 1
    return best_token, best_len
