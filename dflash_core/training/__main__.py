"""`python -m dflash_core.training target|drafter`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

app = typer.Typer(add_completion=False, help="Trains a small target, and a DFlash drafter for a target.")
Work = Annotated[Path, typer.Option(help="Folder for tokens, checkpoints and the finished models.")]
Threads = Annotated[int, typer.Option(help="CPU threads.")]


@app.callback()
def main() -> None:
    """Keeps `target` a command of its own."""


@app.command()
def target(work: Work = Path("training"), steps: int = 800, seed: int = 0, threads: Threads = 2) -> None:
    """Trains the tokenizer and the embedded target on the standard library's source."""
    from dflash_core.training.target import TargetRecipe, run

    torch.set_num_threads(threads)
    print(f"saved in {run(TargetRecipe(steps=steps, seed=seed), work)}")


if __name__ == "__main__":
    app()
