"""`python -m dflash_core.training target|drafter`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from dflash_core.runners.devices import pick_device
from dflash_core.runners.settings import DeviceName

app = typer.Typer(add_completion=False, help="Trains a small target, and a DFlash drafter for a target.")
Work = Annotated[Path, typer.Option(help="Folder for tokens, checkpoints and the finished models.")]
Threads = Annotated[int, typer.Option(help="CPU threads.")]
Device = Annotated[DeviceName, typer.Option(help="Where to train; auto: on a GPU where there is one, in bf16.")]
Seed = Annotated[int, typer.Option(help="Seed of weights and data order.")]


@app.command()
def target(
    work: Work = Path("training"), steps: int = 540, seed: Seed = 0, threads: Threads = 2, device: Device = "cpu"
) -> None:
    """Trains the tokenizer and the embedded target on the standard library's source. Resumes where it stopped."""
    from dflash_core.training.corpus import standard_library
    from dflash_core.training.target import TargetRecipe, run

    torch.set_num_threads(threads)
    print(f"saved in {run(TargetRecipe(steps=steps, seed=seed), standard_library(), work, pick_device(device))}")


@app.command()
def drafter(
    work: Work = Path("training"),
    steps: int = 3000,
    batches: Annotated[int, typer.Option(help="Batches of continuations to train on.")] = 160,
    start: Annotated[Path | None, typer.Option(help="Start from the drafter in this folder.")] = None,
    seed: Seed = 0,
    threads: Threads = 2,
    device: Device = "cpu",
) -> None:
    """Lets the target of the same folder continue prompts, and trains a drafter on that. Resumes where it stopped."""
    from dflash_core.training import continuations, drafter

    torch.set_num_threads(threads)
    recipe = continuations.ContinuationRecipe(num_batches=batches, seed=seed)
    held_out = replace(recipe, num_batches=6)
    place = pick_device(device)
    for tokens, shards, wanted in (
        ("train.npy", "continuations", recipe),
        ("held_out.npy", "held_out_continuations", held_out),
    ):
        prompts = np.load(work / tokens)
        if place.type == "cpu":
            continuations.write_shards_in_processes(work / "target", prompts, work / shards, wanted, threads)
        else:
            continuations.write_shards(work / "target", prompts, work / shards, wanted, device=place)
    folder = drafter.run(
        work / "target",
        continuations.read_shards(work / "continuations", recipe.num_batches),
        continuations.read_shards(work / "held_out_continuations", held_out.num_batches),
        np.load(work / "train.npy"),
        drafter.DrafterRecipe(steps=steps, seed=seed),
        work,
        start,
        place,
    )
    print(f"saved in {folder}")


if __name__ == "__main__":
    app()
