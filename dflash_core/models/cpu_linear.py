"""Matrix products of small models on the CPU in fp32, with weights laid out for few rows."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

_ROWS_PACKED_FOR = 16  # oneDNN's layout is the same from a few rows to some hundred


class CpuLinear(nn.Module):
    """One or more `nn.Linear` of the same input, without bias, as one product; inference only.

    A product of few rows is bound by how its weight is read. BLAS reads `[in, out]` up to four times as fast as the
    usual `[out, in]` when there is one row, and packs the weight anew on every call when there are more: oneDNN keeps
    it packed. So both layouts are kept, which doubles the memory of the weights.
    """

    weight: Tensor  # [in, out]

    def __init__(self, *weights: Tensor) -> None:
        """`weights`: `[out, in]` each; their outputs are concatenated."""
        super().__init__()
        joined = torch.cat([weight.detach() for weight in weights])
        self.register_buffer("weight", joined.t().contiguous())
        self._packed: Tensor | None = None
        if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            with torch.inference_mode(False):
                self._packed = torch.ops.mkldnn._reorder_linear_weight(joined.clone(), _ROWS_PACKED_FOR)

    def forward(self, rows: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`."""
        if self._packed is None or rows.numel() == rows.shape[-1]:
            return torch.matmul(rows, self.weight)
        output: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, None, "none", [], "")
        return output


def is_plain(linear: nn.Module) -> bool:
    """Whether `CpuLinear` computes the same: no bias, on the CPU, in fp32."""
    return (
        isinstance(linear, nn.Linear)
        and cast(Tensor | None, linear.bias) is None
        and linear.weight.device.type == "cpu"
        and linear.weight.dtype == torch.float32
    )
