"""A drafter's layers with few calls, on the CPU in fp32: what `cpu_layers` does for a target."""

from __future__ import annotations

from torch import Tensor, nn

from dflash_core.models.cpu_layers import CpuHeads, fuse_layers, has_plain_heads
from dflash_core.models.cpu_linear import CpuLinear
from dflash_core.models.drafter import Attend, DFlashAttention, DFlashDrafter


class CpuDFlashAttention(nn.Module):
    """In place of a `DFlashAttention`, on packed rows."""

    def __init__(self, attention: DFlashAttention) -> None:
        super().__init__()
        self.layer_idx = attention.layer_idx
        self.heads = CpuHeads(attention)
        self.output = CpuLinear(attention.o_proj.weight)

    def key_value(self, states: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """As `DFlashAttention.key_value`, `[tokens, hidden]`."""
        return self.heads.key_value(states, cos, sin)

    def forward(self, states: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """As `DFlashAttention.forward`, `[rows, hidden]` in and out."""
        output = attend(self.layer_idx, *self.heads(states, cos, sin))
        attended: Tensor = self.output(output.reshape(len(output), -1))
        return attended


def fuse_drafter(drafter: DFlashDrafter) -> None:
    """Replaces what is replaced on the CPU; does nothing to a drafter elsewhere or not in fp32."""
    fuse_layers(drafter)
    for layer in drafter.layers:
        attention = layer.self_attn
        if isinstance(attention, DFlashAttention) and has_plain_heads(attention):
            layer.self_attn = CpuDFlashAttention(attention)
