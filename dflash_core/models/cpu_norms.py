"""RMSNorm in one compiled pass, for models on the CPU in fp32.

transformers' RMSNorm is eight small torch calls, four times a layer: in a small model with few rows that costs as much
as its matrix products. Each row is summed by the same code whatever stands beside it, so a token's value does not
depend on its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

_Function = TypeVar("_Function", bound=Callable[..., object])


class CpuRMSNorm(nn.Module):
    """`x / sqrt(mean(x²) + eps) · weight` over the last dimension; inference only."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self._weight = weight.detach().numpy()  # the same memory
        self.eps = np.float32(eps)

    def forward(self, hidden: Tensor) -> Tensor:
        """fp32 `[..., size]` in and out."""
        hidden = hidden.detach().contiguous()
        output = torch.empty_like(hidden)
        size = len(self._weight)
        _rms_norm(hidden.view(-1, size).numpy(), self._weight, self.eps, output.view(-1, size).numpy())
        return output


def fuse_norms(model: nn.Module) -> None:
    """Replaces the RMSNorms in `model` that compute exactly this; others (with 1 + weight, say) stay as they are.

    Does nothing for a model that is not on the CPU or not in fp32. The model is for inference from then on.
    """
    for name, module in list(model.named_modules()):
        weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
        if not type(module).__name__.endswith("RMSNorm") or not isinstance(weight, nn.Parameter) or eps is None:
            continue
        if weight.device.type != "cpu" or weight.dtype != torch.float32 or weight.ndim != 1:
            continue
        fused = CpuRMSNorm(weight, eps)
        if _is_same(module, fused, len(weight)):
            model.set_submodule(name, fused)


@torch.no_grad()
def _is_same(module: nn.Module, fused: CpuRMSNorm, size: int) -> bool:
    sample = torch.linspace(-3.0, 2.0, 2 * size).view(2, size)
    return torch.allclose(module(sample), fused(sample), rtol=1e-5, atol=1e-6)


def fast_jit(function: _Function) -> _Function:
    """Compiled with sums in any order, which lets them run in vector registers."""
    return cast(_Function, numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})(function))


@fast_jit
def _rms_norm(
    hidden: npt.NDArray[np.float32],  # [num_rows, size]
    weight: npt.NDArray[np.float32],  # [size]
    eps: np.float32,
    output: npt.NDArray[np.float32],  # [num_rows, size]
) -> None:
    num_rows, size = hidden.shape
    for row in range(num_rows):
        squares = np.float32(0)
        for i in range(size):
            squares += hidden[row, i] * hidden[row, i]
        scale = np.float32(1) / np.sqrt(squares / np.float32(size) + eps)
        for i in range(size):
            output[row, i] = hidden[row, i] * scale * weight[i]
