"""Decodes plainly with the drafter looking on: a draft at every token, none of them verified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.traces.trace import SequenceTrace
from dflash_core.contracts import DraftBlock, DraftRanking, Prefill, RoundRequest, SamplingParams, SequenceKey, TreeRows
from dflash_core.runners.drafter import DrafterRunner
from dflash_core.runners.target import TargetRunner
from dflash_core.trees.structure import root_only

_ADDRESS = "traces"


@dataclass(slots=True)
class _Sequence:
    key: SequenceKey
    prompt: npt.NDArray[np.int32]
    sampling: SamplingParams
    tokens: list[int]
    ids: list[npt.NDArray[np.int32]]
    scores: list[npt.NDArray[np.float32]]

    @property
    def root_position(self) -> int:
        return len(self.prompt) + len(self.tokens) - 1


def record(
    target: TargetRunner,
    drafter: DrafterRunner,
    prompts: Sequence[npt.NDArray[np.int32]],
    sampling: Sequence[SamplingParams],
    ranking: DraftRanking,
    max_tokens: int,
) -> Iterator[SequenceTrace]:
    """One trace per prompt, up to its end-of-sequence token or `max_tokens`. All prompts decode together."""
    running = [
        _Sequence(SequenceKey(f"trace-{index}", 0), prompt, params, [], [], [])
        for index, (prompt, params) in enumerate(zip(prompts, sampling, strict=True))
    ]
    for sequence in running:
        drafter.open(sequence.key, 0)
        prefill = Prefill(
            sequence.key,
            sequence.prompt,
            0,
            is_last=True,
            num_prompt_tokens=len(sequence.prompt),
            sampling=sequence.sampling,
            drafter_address=_ADDRESS,
        )
        _round(target, drafter, RoundRequest(1, prefills=(prefill,)), [sequence])
    everyone = list(running)
    while running:
        blocks = [DraftBlock(s.key, s.tokens[-1], s.root_position, s.sampling, ranking) for s in running]
        for sequence, draft in zip(running, drafter.draft(blocks), strict=True):
            assert len(draft.token_ids), draft
            sequence.ids.append(draft.token_ids)
            sequence.scores.append(draft.scores)
        trees = tuple(TreeRows(s.key, s.root_position, root_only(s.tokens[-1])) for s in running)
        _round(target, drafter, RoundRequest(2, trees=trees), running)
        ended = [s for s in running if len(s.tokens) > max_tokens or s.tokens[-1] in target.info.eos_token_ids]
        for sequence in ended:
            drafter.release(sequence.key)
        target.run_round(RoundRequest(3, releases=tuple(s.key for s in ended)))
        running = [s for s in running if s not in ended]
    for sequence in everyone:
        num_tokens = len(sequence.ids)
        yield SequenceTrace(
            sequence.sampling,
            sequence.prompt,
            np.asarray(sequence.tokens[:num_tokens], np.int32),
            np.stack(sequence.ids),
            np.stack(sequence.scores),
        )


def _round(target: TargetRunner, drafter: DrafterRunner, request: RoundRequest, sequences: list[_Sequence]) -> None:
    found = target.run_round(request)
    drafter.append_context(found.context.get(_ADDRESS, []))
    for sequence, outcome in zip(sequences, found.result.outcomes, strict=True):
        sequence.tokens.append(outcome.bonus_token)
