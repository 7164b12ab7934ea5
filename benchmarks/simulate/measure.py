"""`python -m benchmarks.simulate.measure --json OUT.json`: how long a pair's rounds and drafts take on this machine.

A target's rounds by their rows, at little and at much context; a drafter's by their blocks. Processor time of one
thread, so that a busy machine does not disturb it much. Simulations read the file.
"""

from __future__ import annotations

import statistics
import time
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks.command import JsonPath, Record, console, run
from benchmarks.trees import wrong_tree
from cluster.engine import DEFAULT_DRAFTER, DEFAULT_TARGET
from dflash_core.contracts import DraftBlock, Prefill, RoundRequest, SamplingParams, SequenceKey, TreeRows
from dflash_core.runners.drafter import DrafterRunner
from dflash_core.runners.settings import DrafterSettings, TargetSettings
from dflash_core.runners.target import TargetRunner

_ADDRESS = "measure"
_SHORT, _LONG = 32, 512  # tokens of context
_DEPTH = 7  # of trees
_ROWS = (
    (1, 1),
    (2, 1),
    (4, 1),
    (8, 1),
    (8, 2),
    (16, 2),
    (16, 4),
    (16, 8),
    (32, 8),
    (32, 16),
)  # sequences × rows of each
_LONG_ROWS = ((4, 1), (8, 2), (16, 4), (16, 8))
_BLOCKS = (1, 2, 4, 8, 16, 32)


def main(
    target: Annotated[str, typer.Option(help="The target's checkpoint.")] = DEFAULT_TARGET,
    drafter: Annotated[str, typer.Option(help="The drafter's checkpoint.")] = DEFAULT_DRAFTER,
    repeats: Annotated[int, typer.Option(min=1, help="Of each; their median counts.")] = 15,
    json_path: JsonPath = None,
) -> None:
    torch.set_num_threads(1)
    runner = TargetRunner.load(target, drafter, TargetSettings.model_validate({"prefix_caching": False}))
    record = Record(json_path, None, {"target": target, "drafter": drafter, "repeats": repeats, "threads": 1})
    for context, sizes in ((_SHORT, _ROWS), (_LONG, _LONG_ROWS)):
        for num_sequences, num_rows in sizes:
            seconds = _round_seconds(runner, num_sequences, num_rows, context, repeats)
            record.add(
                {"sequences": num_sequences, "rows": num_sequences * num_rows, "context": context, "ms": seconds * 1e3}
            )
    drafts = DrafterRunner.load(drafter, target, DrafterSettings.model_validate({}))
    for num_blocks in _BLOCKS:
        seconds = _draft_seconds(runner, drafts, num_blocks, repeats)
        record.add({"blocks": num_blocks, "context": _SHORT, "ms": seconds * 1e3})
    for result in record.results:
        console().print(result)


def _prefilled(
    target: TargetRunner, num_sequences: int, context: int, drafter: DrafterRunner | None = None
) -> tuple[list[SequenceKey], list[int]]:
    """Opens sequences of random prompts, with their features sent to the drafter; returns their keys and roots."""
    rng = np.random.default_rng(0)
    keys = [SequenceKey(f"sequence-{index}", 0) for index in range(num_sequences)]
    roots = []
    for key in keys:
        if drafter is not None:
            drafter.open(key, 0)
        prefill = Prefill(
            key,
            rng.integers(2, target.info.vocab_size, context).astype(np.int32),
            0,
            is_last=True,
            num_prompt_tokens=context,
            sampling=SamplingParams(),
            drafter_address=_ADDRESS if drafter is not None else "",
        )
        found = target.run_round(RoundRequest(1, prefills=(prefill,)))
        if drafter is not None:
            drafter.append_context(found.context[_ADDRESS])
        roots.append(found.result.outcomes[0].bonus_token)
    return keys, roots


def _round_seconds(target: TargetRunner, num_sequences: int, num_rows: int, context: int, repeats: int) -> float:
    """Median of rounds with random trees, hardly anything of which is accepted."""
    rng = np.random.default_rng(0)
    keys, roots = _prefilled(target, num_sequences, context)
    positions = [context] * num_sequences
    times = []
    for _ in range(repeats + 1):
        trees = tuple(
            TreeRows(key, position, wrong_tree(rng, root, num_rows, _DEPTH, target.info.vocab_size, lambda _: 0))
            for key, position, root in zip(keys, positions, roots, strict=True)
        )
        begin = time.thread_time()
        outcomes = target.run_round(RoundRequest(2, trees=trees)).result.outcomes
        times.append(time.thread_time() - begin)
        roots = [outcome.bonus_token for outcome in outcomes]
        positions = [outcome.cached_len for outcome in outcomes]
    target.run_round(RoundRequest(3, releases=tuple(keys)))
    return statistics.median(times[1:])  # the first one warms up


def _draft_seconds(target: TargetRunner, drafter: DrafterRunner, num_blocks: int, repeats: int) -> float:
    """Median of drafts of the same blocks: drafting changes nothing."""
    keys, roots = _prefilled(target, num_blocks, _SHORT, drafter)
    blocks = [DraftBlock(key, root, _SHORT, SamplingParams()) for key, root in zip(keys, roots, strict=True)]
    times = []
    for _ in range(repeats + 1):
        begin = time.thread_time()
        drafter.draft(blocks)
        times.append(time.thread_time() - begin)
    for key in keys:
        drafter.release(key)
    target.run_round(RoundRequest(3, releases=tuple(keys)))
    return statistics.median(times[1:])


if __name__ == "__main__":
    run(main)
