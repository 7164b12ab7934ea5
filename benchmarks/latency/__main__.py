"""`python -m benchmarks.latency --json found.json --plot found.png`; the embedded pair, in about a minute.

The router of the cluster over in-process transports decodes with different numbers of requests and sizes of trees in
turn. Every round and every draft is predicted before it runs, and then teaches the model (`cluster/router/latency/`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Annotated

import typer
from rich.progress import Progress

from benchmarks.command import Deadline, JsonPath, PlotPath, Record, TimeLimit, console, picked, run
from benchmarks.latency.observed import ObservedDrafter, ObservedTarget, median_error
from benchmarks.latency.report import plot, table
from cluster.bench.arms import Cell
from cluster.bench.prompts import default_prompts
from cluster.bench.router_decoder import RouterDecoder
from cluster.bench.samples import GroupPrompt, PromptGroup
from cluster.engine import DEFAULT_DRAFTER, DEFAULT_TARGET
from cluster.loading import LoadedPair, load_pair
from cluster.router import Router, RouterSettings
from cluster.transports.in_process import InProcessContextSink, InProcessDrafter, InProcessTarget
from dflash_core.runners.settings import DrafterSettings, TargetSettings

_ROUND_TIMEOUT_MS = 600_000


def main(
    target: Annotated[str, typer.Option(help="The target's checkpoint.")] = DEFAULT_TARGET,
    drafter: Annotated[str, typer.Option(help="The drafter's checkpoint.")] = DEFAULT_DRAFTER,
    concurrency: Annotated[
        list[int] | None, typer.Option(min=1, help="Requests at a time; may be repeated; default: 1, 4, 16.")
    ] = None,
    tree_budget: Annotated[
        list[int] | None, typer.Option(min=0, help="Nodes a request; may be repeated; default: 0, 8, 32.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens of an output.")] = 24,
    repeats: Annotated[int, typer.Option(min=1, help="Times that each combination has its turn.")] = 2,
    time_limit_s: TimeLimit = 45.0,
    json_path: JsonPath = None,
    plot_path: PlotPath = None,
) -> None:
    """How well the time of rounds and drafts is predicted before they run, while the load changes.

    No further combination begins after the time limit.
    """
    points = list(product(picked(tree_budget, (0, 8, 32)), picked(concurrency, (1, 4, 16)))) * repeats
    settings = {"target": target, "drafter": drafter, "max_tokens": max_tokens, "points": points}
    record = Record(json_path, plot_path, settings)
    # Each turn computes its prompts: those that are found have no rows.
    pair = load_pair(
        target, drafter, TargetSettings.model_validate({"prefix_caching": False}), DrafterSettings.model_validate({})
    )
    observed_target, observed_drafter = asyncio.run(_observe(pair, points, max_tokens, Deadline(time_limit_s)))
    record.put(
        {
            "steps": name,
            "median_error": median_error(steps) if steps else None,
            "model": model.as_dict(),
            "observed": [step.as_dict() for step in steps],
        }
        for name, steps, model in (
            ("rounds", observed_target.rounds, observed_target.model),
            ("drafts", observed_drafter.drafts, observed_drafter.model),
        )
    )
    console().print(table(observed_target, observed_drafter))
    if plot_path is not None:
        plot(observed_target, observed_drafter, plot_path)


async def _observe(
    pair: LoadedPair, points: Iterable[tuple[int, int]], max_tokens: int, deadline: Deadline
) -> tuple[ObservedTarget, ObservedDrafter]:
    """`points`: (tree budget, requests at a time)."""
    assert pair.drafter is not None
    prompts = [
        GroupPrompt(tuple(pair.tokenizer.encode(prompt.prompt).ids), max_tokens, seed)
        for seed, prompt in enumerate(default_prompts())
    ]
    points = list(points)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="models") as executor, Progress(transient=True) as shown:
        in_process = InProcessDrafter(pair.drafter, executor)
        drafter = ObservedDrafter(in_process)
        target = ObservedTarget(InProcessTarget(pair.target, InProcessContextSink(in_process), executor))
        for tree_budget, concurrency in shown.track(points, description="loads"):
            if target.rounds and deadline.is_over:
                break
            router = _router(target, drafter, tree_budget)
            target.concurrency = concurrency
            group = PromptGroup(tuple(prompts[index % len(prompts)] for index in range(concurrency)))
            await RouterDecoder(router, pair.target.info.eos_token_ids).decode(group, Cell(0.0, concurrency), None)
            await router.close()
    return target, drafter


def _router(target: ObservedTarget, drafter: ObservedDrafter, tree_budget: int) -> Router:
    # One round at a time: of two, one would wait for the other, and its time would be that of both.
    settings = RouterSettings(
        tree_budget=tree_budget,
        micro_batches=1,
        draft_timeout_ms=_ROUND_TIMEOUT_MS,
        always_waits=True,
        round_timeout_ms=_ROUND_TIMEOUT_MS,
    )
    router = Router(settings)
    router.add_target(target)
    router.add_drafter(drafter)
    return router


if __name__ == "__main__":
    run(main)
