"""The training loop that target and drafter share: optimiser, schedule, checkpoints, progress."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from dflash_core.training.muon import Muon


@dataclass(frozen=True)
class LoopSettings:
    """`steps` optimiser steps of `micro_batches` backward passes each.

    The learning rate warms up over `warmup_steps`, stays, and falls linearly to zero over the last
    `decay_fraction` of the steps; a run resumed with fewer steps so begins its decay at once.
    """

    steps: int
    micro_batches: int
    learning_rate: float
    warmup_steps: int = 50
    decay_fraction: float = 0.4
    clip_norm: float = 1.0
    checkpoint_every: int = 50

    def learning_rate_at(self, step: int) -> float:
        decay_start = self.steps * (1 - self.decay_fraction)
        warm = min(1.0, (step + 1) / self.warmup_steps)
        decay = min(1.0, (self.steps - step) / max(1.0, self.steps - decay_start))
        return self.learning_rate * warm * decay


def train(
    model: nn.Module,
    loss_of: Callable[[int, int], Tensor],
    settings: LoopSettings,
    checkpoint: Path,
    title: str,
) -> None:
    """Runs the loop, resuming from `checkpoint` where it exists.

    `loss_of(step, micro_batch)` gives the scalar loss of one micro-batch; it draws its data from these two
    numbers alone, so that a resumed run sees what an uninterrupted one would have seen.
    Raises `FloatingPointError` when the loss is not finite.
    """
    trained = [param for param in model.parameters() if param.requires_grad]
    matrices = [p for name, p in model.named_parameters() if p.requires_grad and p.ndim == 2 and "embed" not in name]
    in_muon = {id(param) for param in matrices}
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=settings.learning_rate),
        torch.optim.AdamW(
            [p for p in trained if id(p) not in in_muon],
            lr=settings.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=0.0,
        ),
    ]
    first_step = _load(checkpoint, model, optimizers)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
    )
    smoothed = math.nan
    device = trained[0].device
    with Progress(*columns) as progress:
        task = progress.add_task(title, total=settings.steps, completed=first_step, loss=smoothed)
        for step in range(first_step, settings.steps):
            total = 0.0
            for micro_batch in range(settings.micro_batches):
                with autocast(device):
                    loss = loss_of(step, micro_batch) / settings.micro_batches
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.item()
            if not math.isfinite(total):
                raise FloatingPointError(f"loss is {total} at step {step}")
            nn.utils.clip_grad_norm_(trained, settings.clip_norm)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate_at(step)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            smoothed = total if math.isnan(smoothed) else 0.95 * smoothed + 0.05 * total
            progress.update(task, advance=1, loss=smoothed)
            if (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps:
                _save(checkpoint, step + 1, model, optimizers)
                progress.console.print(f"{title}: step {step + 1}, loss {smoothed:.4f}", highlight=False)


def autocast(device: torch.device) -> torch.autocast:
    """Matrix products in bf16 on a GPU; weights, sums and losses stay in fp32. Nothing on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _save(checkpoint: Path, step: int, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    partial = checkpoint.with_suffix(".partial")
    trained = {name: param for name, param in model.named_parameters() if param.requires_grad}
    torch.save({"step": step, "model": trained, "optimizers": [o.state_dict() for o in optimizers]}, partial)
    os.replace(partial, checkpoint)  # a run killed here keeps the checkpoint before


def _load(checkpoint: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> int:
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    _, unexpected = model.load_state_dict(state["model"], strict=False)
    if unexpected:
        raise ValueError(f"{checkpoint} holds parameters that the model lacks: {unexpected[:4]}")
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])
