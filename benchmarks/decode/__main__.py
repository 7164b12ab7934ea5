"""`python -m benchmarks.decode --work FOLDER --json found.json --plot found.png`; a tiny pair where there is no GPU.

Trains a target and its drafter on the standard library's source, unless FOLDER has them from a run before, and then
measures as `dflash bench` does: excerpts of files that no training saw, decoded by Hugging Face generate, plainly, with
chains and with trees.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.command import JsonPath, PlotPath, TimeLimit, picked, run
from benchmarks.decode.pair import LARGE, SMALL, trained
from cluster.bench.benchmark import BenchSettings
from cluster.bench.models import ModelOptions
from cluster.bench.prompts import default_prompts
from cluster.bench.session import Outputs, run_benchmark

Work = Annotated[Path, typer.Option(help="Folder of the trained pair, and of what its training leaves.")]


def main(
    work: Work = Path("build/benchmark-pair"),
    hidden_size: Annotated[
        int | None, typer.Option(min=1, help="Of both; default: 768 for about 100M parameters, or tiny without a GPU.")
    ] = None,
    layers: Annotated[int | None, typer.Option(min=8, help="Of the target.")] = None,
    draft_layers: Annotated[int | None, typer.Option(min=1, help="Of the drafter.")] = None,
    draft_block_size: Annotated[int | None, typer.Option(min=2, help="The root and the tokens drafted.")] = None,
    target_steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps of the target.")] = None,
    drafter_steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps of the drafter.")] = None,
    num_prompts: Annotated[
        int | None, typer.Option(min=1, help="Held-out excerpts; default: 32, or 2 on a CPU.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of each; default: 128, or 8 on a CPU.")] = None,
    max_prompts: Annotated[
        int, typer.Option(min=1, help="Most prompts decoded at one concurrency, but at least a group.")
    ] = 16,
    tree_budget: Annotated[
        list[int] | None, typer.Option(min=1, help="Sizes of trees; default: 8, 16, 32, 64.")
    ] = None,
    concurrency: Annotated[
        list[int] | None, typer.Option(min=1, help="Requests at a time; default: 1, 8, 32, or 1, 2 on a CPU.")
    ] = None,
    temperature: Annotated[list[float] | None, typer.Option(min=0.0, help="Default: 0 and 1.")] = None,
    time_limit_s: TimeLimit = None,
    json_path: JsonPath = None,
    plot_path: PlotPath = None,
) -> None:
    """Train a pair in minutes, or take the one in the folder, and measure how it decodes held-out files.

    The time limit is for the measuring; what does not fit is left out.
    """
    outputs = Outputs(json_path, plot_path)
    on_gpu = torch.cuda.is_available()
    torch.set_num_threads(1)
    recipe = LARGE if on_gpu else SMALL
    recipe = recipe.resized(
        hidden_size=hidden_size or recipe.target.hidden_size,
        num_layers=layers or recipe.target.num_layers,
        num_draft_layers=draft_layers or recipe.drafter.num_layers,
        draft_block_size=draft_block_size or recipe.drafter.draft_block_size,
        target_steps=target_steps or recipe.target.steps,
        drafter_steps=drafter_steps or recipe.drafter.steps,
    )
    begin = time.monotonic()
    reports = trained(recipe, work, torch.device("cuda" if on_gpu else "cpu"))
    seconds = time.monotonic() - begin
    print(
        f"a target of {reports['num_parameters'] / 1e6:.1f}M parameters, held-out loss"
        f" {reports['target']['held_out_loss']:.3f}; its drafter's greedy acceptance length is"
        f" {reports['drafter']['held_out_acceptance']:.2f} in training; {seconds:.0f} s"
    )
    settings = BenchSettings(
        models=ModelOptions(str(work / "target"), str(work / "drafter")),
        tree_budgets=picked(tree_budget, (8, 16, 32, 64)),
        concurrencies=picked(concurrency, (1, 8, 32) if on_gpu else (1, 2)),
        temperatures=tuple(temperature or (0.0, 1.0)),
        max_tokens=max_tokens or (128 if on_gpu else 8),
        max_prompts=max_prompts,
        time_limit_s=time_limit_s,
    )
    prompts = default_prompts()[: num_prompts or (32 if on_gpu else 2)]
    described = {"num_prompts": len(prompts), "pair": {"recipe": asdict(recipe), "training_s": seconds, **reports}}
    run_benchmark(settings, prompts, outputs, described)


if __name__ == "__main__":
    run(main)
