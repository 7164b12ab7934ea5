"""The compiled RMSNorm against transformers' own."""

from __future__ import annotations

import torch
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from dflash_core.models.cpu_norms import CpuRMSNorm, fuse_norms


def _norm(size: int) -> Qwen3RMSNorm:
    norm = Qwen3RMSNorm(size, eps=1e-4)
    torch.nn.init.normal_(norm.weight, 1.0, 0.5)
    return norm


def test_equals_the_norm_it_replaces_whatever_the_layout() -> None:
    for size in (1, 8, 33, 192):
        model = torch.nn.Sequential(_norm(size))
        for rows in (torch.randn(size), torch.randn(1, 7, size), torch.randn(3, 2, size).transpose(0, 1)):
            expected = model[0](rows)
            fused = CpuRMSNorm(model[0].weight, 1e-4)
            torch.testing.assert_close(fused(rows), expected, rtol=1e-6, atol=1e-6)


def test_a_rows_value_does_not_depend_on_its_batch() -> None:
    fused, rows = CpuRMSNorm(_norm(48).weight, 1e-6), torch.randn(9, 48)
    assert torch.equal(torch.cat([fused(row) for row in rows.split(1)]), fused(rows))


def test_only_norms_that_compute_the_same_are_replaced() -> None:
    gemma = Gemma2RMSNorm(8)  # multiplies by 1 + weight
    model = torch.nn.ModuleDict({"qwen": _norm(8), "gemma": gemma, "low": _norm(8).bfloat16()})
    fuse_norms(model)
    assert isinstance(model["qwen"], CpuRMSNorm)
    assert model["gemma"] is gemma
    assert isinstance(model["low"], Qwen3RMSNorm)
    assert list(model.state_dict()) == ["qwen.weight", "gemma.weight", "low.weight"]
