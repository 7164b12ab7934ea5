"""Attention and MLP with fewer, larger matrix products, for models that are compiled.

A compiler fuses what lies between two products, but not products of the same input: read one after another, the small
ones (keys and values) are over before memory is busy. What a module computes stays the same up to rounding; modules
that do anything else are left as they are.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralMLP
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2MLP
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3MLP
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeAttention

from dflash_core.attention.registration import AttentionStep, refuse_mask, refuse_unknown_arguments
from dflash_core.models.drafter import Attend, DFlashAttention, DFlashDrafter, rotate

# Query, key and value projections, norms of query and key heads or none, rotation of whole heads, an output projection.
_ATTENTIONS = (LlamaAttention, MistralAttention, Qwen2Attention, Qwen3Attention, Qwen3MoeAttention)
_MLPS = (LlamaMLP, MistralMLP, Qwen2MLP, Qwen3MLP)  # down(act(gate(x)) · up(x))


class FusedLinear(nn.Module):
    """Several `nn.Linear` of one input as one product; inference only. The weights are copied."""

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__()
        self.sizes = [linear.out_features for linear in linears]
        self.weight = nn.Parameter(torch.cat([linear.weight.detach() for linear in linears]), requires_grad=False)
        biases = [cast(Tensor | None, linear.bias) for linear in linears]
        self.bias: nn.Parameter | None = None
        if any(bias is not None for bias in biases):
            parts = [
                linear.weight.new_zeros(linear.out_features) if bias is None else bias.detach()
                for linear, bias in zip(linears, biases, strict=True)
            ]
            self.bias = nn.Parameter(torch.cat(parts), requires_grad=False)

    def forward(self, rows: Tensor) -> tuple[Tensor, ...]:
        """`[..., in]` to one `[..., out]` for each of the layers."""
        return torch.split(F.linear(rows, self.weight, self.bias), self.sizes, dim=-1)

    def some(self, rows: Tensor, first: int) -> tuple[Tensor, ...]:
        """As `forward`, of the layers from `first` on."""
        start = sum(self.sizes[:first])
        bias = None if self.bias is None else self.bias[start:]
        return torch.split(F.linear(rows, self.weight[start:], bias), self.sizes[first:], dim=-1)


class FusedAttention(nn.Module):
    """In place of an attention module of `transformers` that runs as `paged_tree`."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.qkv_proj = FusedLinear(*(cast(nn.Linear, getattr(attention, f"{name}_proj")) for name in "qkv"))
        self.o_proj = cast(nn.Linear, attention.o_proj)
        self.q_norm = cast(nn.Module | None, getattr(attention, "q_norm", None))
        self.k_norm = cast(nn.Module | None, getattr(attention, "k_norm", None))
        self.layer_idx = cast(int, attention.layer_idx)
        self.head_dim = cast(int, attention.head_dim)
        self._scale = cast(float, attention.scaling)
        self._sliding_window = _sliding_window(attention)

    def forward(
        self,
        hidden_states: Tensor,  # [1, num_rows, hidden]
        position_embeddings: tuple[Tensor, Tensor],  # cos and sin [1, num_rows, head_dim]
        attention_mask: Tensor | None = None,
        past_key_values: object = None,
        *,
        paged_step: AttentionStep,
        **others: object,
    ) -> tuple[Tensor, None]:
        """As the module it replaces. Raises `UnsupportedModel` for an argument that is not implemented."""
        refuse_mask(self, attention_mask)
        assert past_key_values is None, "keys and values are paged here"
        refuse_unknown_arguments(others)
        rows = hidden_states[0]
        query, key, value = (heads.view(len(rows), -1, self.head_dim) for heads in self.qkv_proj(rows))
        query = query if self.q_norm is None else self.q_norm(query)
        key = key if self.k_norm is None else self.k_norm(key)
        cos, sin = (x[0] for x in position_embeddings)
        output = paged_step.attend(
            self.layer_idx,
            rotate(query, cos, sin),
            rotate(key, cos, sin),
            value,
            scale=self._scale,
            sliding_window=self._sliding_window,
            softcap=None,
        )
        return self.o_proj(output.flatten(1)).unsqueeze(0), None


class FusedMLP(nn.Module):
    """`down(act(gate(x)) · up(x))`."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.gate_up_proj = FusedLinear(cast(nn.Linear, mlp.gate_proj), cast(nn.Linear, mlp.up_proj))
        self.down_proj = cast(nn.Linear, mlp.down_proj)
        self.act_fn = cast(nn.Module, mlp.act_fn)

    def forward(self, hidden: Tensor) -> Tensor:
        """`[..., hidden]` in and out."""
        gate, up = self.gate_up_proj(hidden)
        output: Tensor = self.down_proj(self.act_fn(gate) * up)
        return output


def fuse_products(model: nn.Module) -> None:
    """Replaces the attention and MLP modules in `model` that compute exactly this. Needs memory for one more layer."""
    for name, module in list(model.named_modules()):
        if type(module) in _ATTENTIONS:
            model.set_submodule(name, FusedAttention(module))
        elif type(module) in _MLPS:
            model.set_submodule(name, FusedMLP(module))


def _sliding_window(attention: nn.Module) -> int | None:
    """Mistral's modules leave it to the config."""
    if hasattr(attention, "sliding_window"):
        return cast(int | None, attention.sliding_window)
    if isinstance(attention, MistralAttention):
        return cast(int | None, getattr(attention.config, "sliding_window", None))
    return None


class FusedDFlashAttention(nn.Module):
    """In place of a `DFlashAttention`: query, key and value of a block are one product, key and value of its context
    another, of the same weight."""

    def __init__(self, attention: DFlashAttention) -> None:
        super().__init__()
        self.layer_idx = attention.layer_idx
        self.head_dim = attention.head_dim
        self.qkv_proj = FusedLinear(attention.q_proj, attention.k_proj, attention.v_proj)
        self.o_proj = attention.o_proj
        self.q_norm = attention.q_norm
        self.k_norm = attention.k_norm

    def key_value(self, states: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """As `DFlashAttention.key_value`."""
        key, value = (self._heads(x) for x in self.qkv_proj.some(states, 1))
        return rotate(self.k_norm(key), cos, sin), value

    def forward(self, states: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """As `DFlashAttention.forward`."""
        query, key, value = (self._heads(x) for x in self.qkv_proj(states))
        query, key = rotate(self.q_norm(query), cos, sin), rotate(self.k_norm(key), cos, sin)
        output: Tensor = self.o_proj(attend(self.layer_idx, query, key, value).flatten(-2))
        return output

    def _heads(self, states: Tensor) -> Tensor:
        return states.view(*states.shape[:-1], -1, self.head_dim)


def fuse_drafter_products(drafter: DFlashDrafter) -> None:
    """`fuse_products` for a drafter."""
    fuse_products(drafter)
    for layer in drafter.layers:
        if isinstance(layer.self_attn, DFlashAttention):
            layer.self_attn = FusedDFlashAttention(layer.self_attn)
