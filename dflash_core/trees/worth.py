"""What a token of a sequence is worth at present, against one of the same sequence on average.

A text's hard places are hard for several tokens: where a draft promises little, the next ones will too (recorded of the
embedded pair, greedy: after a round without nodes at a place where trees of 8 are to bring 0.5 to 1 tokens they bring
0.9 at the next, 6 on average). Each token that is accepted there saves more of a round than one where every round
brings many. Were difficulty to last for ever, the best trees would be those with the most tokens per second right here;
did it change with every round, those with the most above the mean rate. Half way between, in logarithms, writes 1.5 to
2.5 % faster than the latter on greedy outputs, one request at a time, and as fast at temperature 1 and for many.
"""

from __future__ import annotations

import math

import numpy as np

from dflash_core.jit import jit
from dflash_core.trees.acceptance import NUM_CLASSES
from dflash_core.trees.packed import MAX_WEIGHT, Candidates, check
from dflash_core.trees.scoring import Doubles, is_candidate, log_of

MOST_WORTH = 2.0  # and the least is its inverse
_LASTING = 0.5  # the exponent: 0, difficulty is gone with the next round; 1, it stays
_LEAST_STEP = 0.005  # of a mean: a few hundred drafts count


class Worth:
    """Means of how sure drafters are, by context class."""

    def __init__(self) -> None:
        self._means: Doubles = np.zeros(NUM_CLASSES)
        self._num_seen: Doubles = np.zeros(NUM_CLASSES)

    def weigh(self, candidates: Candidates) -> Candidates:
        """With each sequence's weight times what its tokens are worth; learns what is usual."""
        return candidates._replace(weights=_weigh(candidates, self._means, self._num_seen))


@jit
def _weigh(candidates: Candidates, means: Doubles, num_seen: Doubles) -> Doubles:
    check(candidates)
    weights = candidates.weights.copy()
    for sequence in range(len(weights)):
        begin, num_ranks = candidates.offsets[sequence], candidates.num_ranks[sequence]
        end = begin + candidates.depths[sequence] * num_ranks
        if begin == end:
            continue
        # Tokens that a chain would bring if the drafter were right about itself: all of it, whatever is still wanted.
        of_path, tokens = 0.0, 1.0
        for first in range(begin, end, num_ranks):
            if not is_candidate(candidates.scores[first]):
                break
            of_path += log_of(candidates.scores[first])
            tokens += math.exp(of_path)
        sureness, group = math.log(tokens), candidates.classes[sequence]
        num_seen[group] += 1.0
        means[group] += max(_LEAST_STEP, 1.0 / num_seen[group]) * (sureness - means[group])
        worth = math.exp(_LASTING * (means[group] - sureness))
        weights[sequence] *= min(MOST_WORTH, max(1.0 / MOST_WORTH, worth))
        weights[sequence] = min(weights[sequence], MAX_WEIGHT)
    return weights
