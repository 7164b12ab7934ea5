"""Decoding replayed from a trace: trees are built, verified against the recorded tokens, and learned from."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from benchmarks.traces.trace import SequenceTrace
from dflash_core.contracts import DEFAULT_RANKING, DraftTree
from dflash_core.trees.acceptance import AcceptanceModel, context_class
from dflash_core.trees.build import NodeBudget, TreeBuilder
from dflash_core.trees.candidates import NO_HISTORY, TreeCandidates
from dflash_core.trees.histories import TokenHistories

# Of a shared budget a sequence may take this many times its share, as in the router.
_MOST_SHARES = 2


class Scores(StrEnum):
    RAW = "raw"  # the drafter's own probabilities
    CALIBRATED = "calibrated"  # learned from the rounds before
    MATCHED = "matched"  # and with the sequence's own history


@dataclass(frozen=True, slots=True)
class Replayed:
    num_rounds: int
    num_tokens: int
    expected_tokens: float  # as the scores had it

    @property
    def acceptance_length(self) -> float:
        return self.num_tokens / self.num_rounds

    @property
    def predicted_per_actual(self) -> float:
        return self.expected_tokens / self.num_tokens


@dataclass(slots=True)
class _Running:
    trace: SequenceTrace
    history: int
    root: int = 0  # its place in the trace

    @property
    def num_left(self) -> int:
        """Recorded tokens after the root."""
        return len(self.trace.token_ids) - 1 - self.root


def replay(
    traces: Iterable[SequenceTrace],
    num_nodes: int,
    scores: Scores,
    concurrency: int,
    model: AcceptanceModel,
) -> Replayed:
    """Decodes all traces, `concurrency` at a time, with `num_nodes` per sequence shared among those that run.

    `model` is changed by what is learned; raw scores are those of a new one.
    """
    histories = TokenHistories() if scores is Scores.MATCHED else None
    builder = TreeBuilder(model, histories)
    waiting, running = deque(traces), list[_Running]()
    num_rounds, num_tokens, expected = 0, 0, 0.0
    while waiting or running:
        while waiting and len(running) < concurrency:
            running.append(_begin(waiting.popleft(), histories))
        batch = builder.build(
            [_candidates(sequence, num_nodes) for sequence in running], NodeBudget.of(num_nodes * len(running))
        )
        committed = [_committed(tree, sequence) for tree, sequence in zip(batch.trees, running, strict=True)]
        if scores is not Scores.RAW:
            builder.learn(batch, committed)
        if histories is not None:
            histories.extend([sequence.history for sequence in running], committed)
        num_rounds += len(running)
        num_tokens += sum(map(len, committed))
        expected += float(batch.expected_tokens.sum())
        for sequence, tokens in zip(running, committed, strict=True):
            sequence.root += len(tokens)
            if histories is not None and sequence.num_left == 0:
                histories.close(sequence.history)
        running = [sequence for sequence in running if sequence.num_left > 0]
    return Replayed(num_rounds, num_tokens, expected)


def _begin(trace: SequenceTrace, histories: TokenHistories | None) -> _Running:
    if histories is None:
        return _Running(trace, NO_HISTORY)
    slot = histories.open()
    histories.extend([slot], [[*trace.prompt_ids.tolist(), int(trace.token_ids[0])]])
    return _Running(trace, slot)


def _candidates(sequence: _Running, num_nodes: int) -> TreeCandidates:
    trace = sequence.trace
    return TreeCandidates(
        root_token=int(trace.token_ids[sequence.root]),
        token_ids=trace.candidate_ids[sequence.root],
        scores=trace.scores[sequence.root],
        # The token after the last node must be recorded too.
        max_depth=sequence.num_left - 1,
        max_nodes=num_nodes * _MOST_SHARES,
        context_class=context_class(trace.sampling, DEFAULT_RANKING),
        history=sequence.history,
    )


def _committed(tree: DraftTree, sequence: _Running) -> list[int]:
    """The accepted path and the bonus token."""
    trace, root = sequence.trace, sequence.root
    tokens: list[int] = trace.token_ids[root + 1 :][: num_accepted(tree, trace, root) + 1].tolist()
    return tokens


def num_accepted(tree: DraftTree, trace: SequenceTrace, root: int) -> int:
    """How many of the tree's nodes are the tokens that were recorded after the root."""
    token_ids, depths, accepted = tree.token_ids.tolist(), tree.depths.tolist(), 0
    for token, depth in zip(token_ids[1:], depths[1:], strict=True):
        if depth <= accepted:  # the accepted node's subtree has ended
            break
        if depth == accepted + 1 and token == trace.token_ids[root + depth]:
            accepted += 1
    return accepted
