"""Corpus split, optimiser and loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dflash_core.training.corpus import HELD_OUT_ONE_IN, SourceFile, standard_library
from dflash_core.training.loop import LoopSettings, train
from dflash_core.training.muon import Muon, _orthogonalised


def test_the_split_depends_on_the_name_alone() -> None:
    here, there = SourceFile("json/decoder.py", Path("/a")), SourceFile("json/decoder.py", Path("/b"))
    assert here.is_held_out == there.is_held_out
    files = standard_library()
    assert len(files) > 100
    held_out = sum(file.is_held_out for file in files) / len(files)
    assert 0.3 / HELD_OUT_ONE_IN < held_out < 3 / HELD_OUT_ONE_IN


@pytest.mark.parametrize("shape", [(3, 8, 24), (2, 24, 8), (1, 16, 16)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(_orthogonalised(torch.randn(shape)))
    assert values.min() > 0.5
    assert values.max() < 1.35


def test_muon_finds_a_matrix() -> None:
    torch.manual_seed(0)
    wanted = torch.randn(6, 10)
    param = nn.Parameter(torch.zeros(6, 10))
    optimizer = Muon([param], lr=0.1, weight_decay=0.0)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 200)
        (param - wanted).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (param - wanted).abs().max() < 0.05


def test_learning_rate_warms_up_stays_and_falls() -> None:
    settings = LoopSettings(steps=100, micro_batches=1, learning_rate=1.0, warmup_steps=10, decay_fraction=0.5)
    assert settings.learning_rate_at(0) == pytest.approx(0.1)
    assert settings.learning_rate_at(10) == settings.learning_rate_at(49) == 1.0
    assert settings.learning_rate_at(75) == pytest.approx(0.5)
    assert settings.learning_rate_at(99) == pytest.approx(0.02)


def _problem() -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)), list(torch.randn(8, 2, 4))


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    settings = LoopSettings(steps=8, micro_batches=2, learning_rate=0.01, checkpoint_every=4)

    class Interrupted(Exception):
        pass

    def run(checkpoint: Path, stop_at: int | None) -> list[Tensor]:
        model, data = _problem()

        def loss_of(step: int, micro_batch: int) -> Tensor:
            if step == stop_at:
                raise Interrupted
            loss: Tensor = model(data[(step + micro_batch) % len(data)]).square().mean()
            return loss

        train(model, loss_of, settings, checkpoint, "test")
        return [param.detach().clone() for param in model.parameters()]

    whole = run(tmp_path / "whole.pt", None)
    with pytest.raises(Interrupted):
        run(tmp_path / "parts.pt", 6)
    parts = run(tmp_path / "parts.pt", None)
    for a, b in zip(whole, parts, strict=True):
        assert torch.equal(a, b)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    model, data = _problem()
    settings = LoopSettings(steps=2, micro_batches=1, learning_rate=0.01)
    with pytest.raises(FloatingPointError, match="step 0"):
        train(model, lambda step, micro_batch: model(data[0]).sum() * torch.nan, settings, tmp_path / "c.pt", "test")
