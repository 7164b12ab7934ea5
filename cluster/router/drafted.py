"""`Drafted`: the sequences of a round that have a draft, in columns, as the search for nodes takes them."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from cluster.router.sequence import Sequence
from dflash_core.contracts import DraftRanking, PackedDrafts
from dflash_core.trees.packed import Candidates


@dataclass(frozen=True, slots=True)
class Drafted:
    """What their trees are built from: an entry of each list per sequence."""

    places: list[int]  # among the running sequences of the round
    sequences: list[Sequence]
    drafts: list[PackedDrafts]  # the answers that their drafts came in
    draft_places: list[int]  # in these
    rankings: list[DraftRanking]
    max_nodes: list[int]  # of each tree

    @classmethod
    def of(cls, sequences: Many[Sequence], max_nodes: list[int]) -> Drafted:
        """Of the running sequences of a round, those that have a draft for their root and may have nodes."""
        places = [
            place for place, sequence in enumerate(sequences) if sequence.drafts is not None and max_nodes[place] > 0
        ]
        found = [sequences[place] for place in places]
        return cls(
            places,
            found,
            [sequence.drafts for sequence in found if sequence.drafts is not None],
            [sequence.draft_place for sequence in found],
            [sequence.ranking for sequence in found],
            [max_nodes[place] for place in places],
        )

    def candidates(self, roots: list[int], min_nodes: int, max_width: int) -> Candidates:
        """Of all running sequences, whose last tokens are `roots`: those without a draft bring no more than that.

        Args:
            min_nodes: of each tree, as far as it may have so many. max_width: most children of a node.
        """
        drafts, places = self._one_answer()
        depths = [drafts.depths[place] for place in places]
        columns = np.array(
            (
                [drafts.begins[place] for place in places],
                depths,
                [drafts.num_candidates[place] for place in places],
                [min(depth, sequence.num_wanted - 1) for depth, sequence in zip(depths, self.sequences, strict=True)],
                [max(min_nodes, sequence.min_nodes) for sequence in self.sequences],
                self.max_nodes,
                [sequence.context_class for sequence in self.sequences],
                [sequence.history for sequence in self.sequences],
            ),
            np.int64,
        )
        weights = np.array([sequence.weight for sequence in self.sequences], np.float64)
        if len(self.places) < len(roots):
            of_drafted, columns = columns, np.zeros((len(columns), len(roots)), np.int64)
            columns[:, self.places] = of_drafted
            of_sequences, weights = weights, np.ones(len(roots))
            weights[self.places] = of_sequences
        offsets, of_depths, num_ranks, max_depths, least_nodes, most_nodes, classes, slots = columns
        return Candidates(
            roots=np.array(roots, np.int32),
            token_ids=drafts.token_ids,
            scores=drafts.scores,
            offsets=offsets,
            depths=of_depths,
            num_ranks=num_ranks,
            max_depths=max_depths,
            min_nodes=least_nodes,
            max_nodes=most_nodes,
            max_widths=np.full(len(roots), max_width, np.int64),
            weights=weights,
            classes=classes,
            slots=slots,
        )

    def _one_answer(self) -> tuple[PackedDrafts, list[int]]:
        """All drafts of the round in one, and where in it those of the sequences are."""
        answers = list(dict.fromkeys(self.drafts))  # one per drafter, mostly
        if len(answers) == 1:
            return answers[0], self.draft_places
        starts = dict(zip(answers, accumulate(map(len, answers), initial=0), strict=False))
        places = [starts[answer] + place for answer, place in zip(self.drafts, self.draft_places, strict=True)]
        return PackedDrafts.joined(answers), places


NOBODY = Drafted([], [], [], [], [], [])
