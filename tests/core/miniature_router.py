"""Drives a target runner as a router would, with everything at random: chunks, trees, company, releases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dflash_core.contracts import Outcome, OutcomeStatus, Prefill, RoundResult, SamplingParams, SequenceKey, TreeRows
from dflash_core.runners.target import TargetRunner
from tests.core.target_models import ok, random_tree, run


@dataclass
class Job:
    """One sequence, and the tokens that plain decoding gave for it."""

    name: str
    prompt: npt.NDArray[np.int32]
    expected: list[int]
    sampling: SamplingParams
    attempt: int = 0
    done: list[int] = field(default_factory=list)
    prefilled: int | None = None  # of this attempt; None: not on the target
    is_running: bool = False
    opened: int = 0  # when, by count, in this attempt
    num_hit_tokens: list[int] = field(default_factory=list)  # of each attempt

    @property
    def key(self) -> SequenceKey:
        return SequenceKey(self.name, self.attempt)

    @property
    def committed(self) -> npt.NDArray[np.int32]:
        return np.concatenate([self.prompt, np.asarray(self.done, np.int32)])

    @property
    def is_done(self) -> bool:
        return len(self.done) >= len(self.expected)

    def start_again(self) -> None:
        self.attempt += 1
        self.prefilled, self.is_running = None, False


def chunk_of(
    key: SequenceKey, token_ids: npt.NDArray[np.int32], start: int, num_tokens: int, sampling: SamplingParams
) -> Prefill:
    """As a router makes it: the first chunk tells what follows."""
    end = min(start + num_tokens, len(token_ids))
    return Prefill(
        key,
        token_ids[start:end],
        start,
        is_last=end == len(token_ids),
        num_prompt_tokens=len(token_ids),
        sampling=sampling,
        following=token_ids[end:] if start == 0 else np.empty(0, np.int32),
    )


class MiniatureRouter:
    """Runs jobs to their ends, at most `max_running` at a time, and checks every outcome against the contract."""

    def __init__(self, runner: TargetRunner, rng: np.random.Generator, max_running: int, release: float = 0.0) -> None:
        self._runner = runner
        self._rng = rng
        self._max_running = max_running
        self._release = release  # probability that a sequence is released and started again, per round
        self._num_opened = 0
        self.num_accepted = 0
        self.num_preempted = 0

    def run(self, jobs: list[Job]) -> None:
        waiting, running = list(jobs), list[Job]()
        while waiting or running:
            while waiting and len(running) < self._max_running:
                running.append(waiting.pop(0))
            self._round(running)
            finished = [job for job in running if job.is_done]
            run(self._runner, releases=tuple(job.key for job in finished))
            running = [job for job in running if not job.is_done]

    def _round(self, running: list[Job]) -> RoundResult:
        releases = []
        for job in running:
            if job.prefilled is not None and self._rng.random() < self._release:
                releases.append(job.key)
                job.start_again()
        prefills, trees = [], []
        for job in running:
            if self._rng.random() < 0.2:
                continue
            if job.is_running:
                trees.append(self._tree(job))
            else:
                num_tokens = int(self._rng.integers(1, 9))
                prefills.append(chunk_of(job.key, job.committed, job.prefilled or 0, num_tokens, job.sampling))
        request: dict[str, Any] = {"prefills": prefills, "trees": trees, "releases": releases}
        held = [job for job in running if job.prefilled is not None]
        result = run(self._runner, **{name: tuple(parts) for name, parts in request.items()}).result
        jobs = {job.key: job for job in running}
        for piece, outcome in zip((*prefills, *trees), result.outcomes, strict=True):
            assert outcome.key == piece.key
            is_preempted = outcome.key in result.preempted
            assert is_preempted == (outcome.status is OutcomeStatus.OUT_OF_BLOCKS)
            if not is_preempted:
                self._take(jobs[outcome.key], piece, ok(outcome))
        assert result.free_blocks == self._runner.free_blocks
        self._preempt(held, [jobs[key] for key in result.preempted])
        return result

    def _preempt(self, held: list[Job], preempted: list[Job]) -> None:
        """`held`: who was on the target before the round."""
        self.num_preempted += len(preempted)
        survivors = [job.opened for job in held if job not in preempted]
        victims = [job.opened for job in held if job in preempted]
        assert max(survivors, default=-1) < min(victims, default=self._num_opened), "the youngest go first"
        assert survivors or not held, "the oldest goes on"
        for job in preempted:
            job.start_again()

    def _tree(self, job: Job) -> TreeRows:
        left = len(job.expected) - len(job.done)
        nodes = int(self._rng.integers(0, 10)) if left > 1 else 0
        right = job.expected[len(job.done) :]
        tree = random_tree(self._rng, job.done[-1], right, nodes, max_depth=min(5, left - 1))
        return TreeRows(job.key, len(job.committed) - 1, tree)

    def _take(self, job: Job, piece: Prefill | TreeRows, outcome: Outcome) -> None:
        if isinstance(piece, Prefill):
            if piece.start == 0:
                job.num_hit_tokens.append(outcome.num_hit_tokens)
                job.opened = self._num_opened
                self._num_opened += 1
            computed = piece.skip(outcome.num_hit_tokens)
            job.prefilled = computed.start + len(computed.token_ids)
            assert outcome.cached_len == job.prefilled
            assert (outcome.bonus_token >= 0) == computed.is_last == (job.prefilled == len(job.committed))
            job.is_running = computed.is_last
        else:
            assert outcome.num_hit_tokens == 0
            assert outcome.cached_len == piece.root_position + outcome.num_accepted + 1
        if outcome.bonus_token >= 0:
            job.done += [*outcome.token_ids.tolist(), outcome.bonus_token]
            self.num_accepted += outcome.num_accepted
            assert job.done == job.expected[: len(job.done)]
