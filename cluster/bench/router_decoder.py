"""Our own arms: the router of the cluster over the in-process transports."""

from __future__ import annotations

import asyncio
import time

import numpy as np

from cluster.bench.samples import Decoded, GroupPrompt
from cluster.requests import GenerationRequest, GenerationStatistics, TokenEvent
from cluster.router import Router
from cluster.router.timeline import Timeline
from cluster.router.timings import IDLE
from cluster.transports.runner_protocols import TargetModelRunner
from dflash_core.contracts import SamplingParams


class _Collector:
    """The sink of one group: its outputs and statistics, and a future for the end of the last one."""

    def __init__(self, num_sequences: int) -> None:
        self.outputs: list[list[int]] = [[] for _ in range(num_sequences)]
        self.statistics: list[GenerationStatistics] = []
        self.done: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def put(self, events: list[TokenEvent]) -> None:
        for event in events:
            if event.error is not None and not self.done.done():
                self.done.set_exception(event.error)
            self.outputs[int(event.sequence_id)] += event.token_ids.tolist()
            if event.statistics is not None:
                self.statistics.append(event.statistics)
        if len(self.statistics) == len(self.outputs) and not self.done.done():
            self.done.set_result(time.perf_counter())


class RouterDecoder:
    """One router with its own strategy and budget. The target behind it is shared with the other arms."""

    def __init__(self, router: Router, runner: TargetModelRunner) -> None:
        self._router = router
        self._runner = runner

    async def decode(self, prompts: list[GroupPrompt], temperature: float, timeline: Timeline | None) -> Decoded:
        collector = _Collector(len(prompts))
        requests = [
            GenerationRequest(
                sequence_id=str(index),
                token_ids=np.asarray(prompt.token_ids, dtype=np.int32),
                num_prompt_tokens=len(prompt.token_ids),
                max_tokens=prompt.max_tokens,
                sampling=SamplingParams(temperature=temperature, seed=prompt.seed),
                stop_token_ids=self._runner.info.eos_token_ids,
            )
            for index, prompt in enumerate(prompts)
        ]
        timings = self._router.timings
        timings.reset()
        timings.timeline = timeline
        begin = time.perf_counter()
        for request in requests:
            self._router.submit(request, collector)
        try:
            end = await collector.done
        finally:
            self._router.release_client(collector)
        # A prefill is a round too, but verifies nothing.
        verified_trees = sum(statistics.rounds - 1 for statistics in collector.statistics)
        decoded = Decoded(
            seconds=end - begin,
            outputs=tuple(map(tuple, collector.outputs)),
            verified_trees=verified_trees,
            accepted_tokens=sum(statistics.accepted_tokens for statistics in collector.statistics),
            tree_nodes=sum(statistics.tree_nodes for statistics in collector.statistics),
            rounds=timings.rounds,
            stage_us={name: stage.total_us for name, stage in timings.stages.items() if name != IDLE},
        )
        while self._runner.num_sequences:  # the releases run by themselves: not in the next arm's time
            await asyncio.sleep(0.001)
        return decoded
