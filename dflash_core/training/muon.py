"""Muon, batched over equal shapes; in float32 on a CPU.

`torch.optim.Muon` works matrix by matrix in bfloat16: on a CPU without bfloat16 units that took 6.1 s a step
for the embedded target, where this takes 0.3 s. Algorithm: Keller Jordan, "Muon: an optimizer for hidden
layers in neural networks" (2024); the scale that lets AdamW's learning rate serve both is from
"Muon is Scalable for LLM Training" (arXiv 2502.16982, section 2.2).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Momentum, then the nearest orthogonal matrix, for weight matrices only (not embeddings or norms)."""

    def __init__(
        self, params: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    by_shape[param.shape].append(param)
            for shape, params in by_shape.items():
                nesterov = torch.stack([self._nesterov(param, group["momentum"]) for param in params])
                updates = _orthogonalised(nesterov)
                scale = 0.2 * max(shape) ** 0.5  # the root mean square of an AdamW update
                for param, update in zip(params, updates, strict=True):
                    param.mul_(1 - group["lr"] * group["weight_decay"])
                    param.add_(update, alpha=-group["lr"] * scale)

    def _nesterov(self, param: torch.nn.Parameter, momentum: float) -> Tensor:
        assert param.grad is not None
        state = self.state[param]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(param)
        buffer: Tensor = state["momentum_buffer"]
        buffer.lerp_(param.grad, 1 - momentum)
        return param.grad.lerp(buffer, momentum)


def _orthogonalised(matrices: Tensor) -> Tensor:
    """`[batch, rows, columns]` → the same with all singular values near 1, by a quintic Newton–Schulz iteration."""
    a, b, c = _NEWTON_SCHULZ
    wide = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    wide = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if wide.is_cuda:
        wide = wide.bfloat16()  # as published: the result is rough in any case
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    orthogonal: Tensor = wide.mT if matrices.shape[-2] > matrices.shape[-1] else wide
    return orthogonal.to(matrices.dtype)
