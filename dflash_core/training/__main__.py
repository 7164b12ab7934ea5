"""`python -m dflash_core.training target|drafter`."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
import typer

if TYPE_CHECKING:
    from dflash_core.training.continuations import ContinuationRecipe

app = typer.Typer(add_completion=False, help="Trains a small target, and a DFlash drafter for a target.")
Work = Annotated[Path, typer.Option(help="Folder for tokens, checkpoints and the finished models.")]
Threads = Annotated[int, typer.Option(help="CPU threads.")]
Seed = Annotated[int, typer.Option(help="Seed of weights and data order.")]


@app.command()
def target(work: Work = Path("training"), steps: int = 800, seed: Seed = 0, threads: Threads = 2) -> None:
    """Trains the tokenizer and the embedded target on the standard library's source. Resumes where it stopped."""
    from dflash_core.training.corpus import standard_library
    from dflash_core.training.target import TargetRecipe, run

    torch.set_num_threads(threads)
    print(f"saved in {run(TargetRecipe(steps=steps, seed=seed), standard_library(), work)}")


@app.command()
def drafter(
    work: Work = Path("training"),
    steps: int = 1200,
    batches: Annotated[int, typer.Option(help="Batches of continuations to train on.")] = 120,
    seed: Seed = 0,
    threads: Threads = 2,
) -> None:
    """Lets the target of the same folder continue prompts, and trains a drafter on that. Resumes where it stopped."""
    from dflash_core.training import continuations, drafter

    torch.set_num_threads(threads)
    recipe = continuations.ContinuationRecipe(num_batches=batches, seed=seed)
    held_out = replace(recipe, num_batches=10)
    for tokens, folder, wanted in (
        ("train.npy", "continuations", recipe),
        ("held_out.npy", "held_out_continuations", held_out),
    ):
        _continue_in_processes(work / "target", work / tokens, work / folder, wanted, threads)
    folder = drafter.run(
        work / "target",
        continuations.read_shards(work / "continuations", recipe.num_batches),
        continuations.read_shards(work / "held_out_continuations", held_out.num_batches),
        np.load(work / "train.npy"),
        drafter.DrafterRecipe(steps=steps, seed=seed),
        work,
    )
    print(f"saved in {folder}")


def _continue_in_processes(target: Path, tokens: Path, folder: Path, recipe: ContinuationRecipe, num_workers: int) -> None:
    """One thread per process: decoding's small matrix products gain little from a second thread."""
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_write_shards, args=(target, tokens, folder, recipe, worker, num_workers))
        for worker in range(num_workers)
    ]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    if failed := [process.exitcode for process in workers if process.exitcode]:
        raise SystemExit(f"writing continuations failed in {len(failed)} of {num_workers} processes")


def _write_shards(target: Path, tokens: Path, folder: Path, recipe: ContinuationRecipe, worker: int, num_workers: int) -> None:
    from dflash_core.training.continuations import write_shards

    torch.set_num_threads(1)
    write_shards(target, np.load(tokens), folder, recipe, worker, num_workers)


if __name__ == "__main__":
    app()
