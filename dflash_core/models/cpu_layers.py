"""Attention and MLP of Qwen3- and Llama-like layers with few calls, for models on the CPU in fp32.

A small model's round is mostly the cost of calling: transformers' attention is about forty torch calls a layer before
and after the attention itself, here it is two. What a module computes stays the same up to rounding; modules that do
anything else are left as they are.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3MLP

from dflash_core.attention.registration import AttentionStep, refuse_mask, refuse_unknown_arguments
from dflash_core.models.cpu_linear import CpuLinear, is_plain
from dflash_core.models.cpu_norms import CpuRMSNorm, fast_jit, fuse_norms
from dflash_core.parallel.shards import SummedOverRanks

Floats = npt.NDArray[np.float32]

_NO_WEIGHT = np.empty(0, np.float32)


class CpuMLP(nn.Module):
    """`down(silu(gate(x)) · up(x))`."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.gate_up = _fused(mlp, "gate_proj", "up_proj")
        self.down = _fused_output(mlp, "down_proj")

    def forward(self, hidden: Tensor) -> Tensor:
        """`[..., hidden]` in and out."""
        gate, up = self.gate_up(hidden).chunk(2, dim=-1)
        output: Tensor = self.down(F.silu(gate).mul_(up))
        return output


class CpuHeads(nn.Module):
    """Projections to query, key and value heads, the norms of query and key where there are any, and the rotation."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.head_dim = cast(int, attention.head_dim)
        self.num_heads = cast(nn.Linear, attention.q_proj).out_features // self.head_dim
        self.num_kv_heads = cast(nn.Linear, attention.k_proj).out_features // self.head_dim
        self.projection = _fused(attention, "q_proj", "k_proj", "v_proj")
        self._query_norm, self._key_norm, self._eps = _NO_WEIGHT, _NO_WEIGHT, np.float32(0)
        query_norm, key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        if isinstance(query_norm, CpuRMSNorm) and isinstance(key_norm, CpuRMSNorm):
            self._query_norm, self._key_norm = query_norm.weight.detach().numpy(), key_norm.weight.detach().numpy()
            self._eps = query_norm.eps

    def forward(self, rows: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[rows, hidden]`, cos and sin `[rows, head_dim]`, to `[rows, heads, head_dim]` of query, key and value."""
        return self._split(self.projection(rows), self.num_heads, cos, sin)

    def key_value(self, rows: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, without the query."""
        weight = self.projection.weight[:, self.num_heads * self.head_dim :]
        _, key, value = self._split(torch.mm(rows, weight), 0, cos, sin)
        return key, value

    def _split(self, projected: Tensor, num_heads: int, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        num_rows = len(projected)
        query = torch.empty(num_rows, num_heads, self.head_dim)
        key_value = torch.empty(2, num_rows, self.num_kv_heads, self.head_dim)
        key, value = key_value.unbind(0)
        _split_heads(
            projected.numpy(),
            self._query_norm,
            self._key_norm,
            self._eps,
            cos.numpy(),
            sin.numpy(),
            query.numpy(),
            key_value.numpy(),
        )
        return query, key, value


class CpuAttention(nn.Module):
    """In place of an attention module of `transformers` that runs as `paged_tree`."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.heads = CpuHeads(attention)
        self.output = _fused_output(attention, "o_proj")
        self.layer_idx = cast(int, attention.layer_idx)
        self._scale = cast(float, attention.scaling)
        self._sliding_window = cast(int | None, getattr(attention, "sliding_window", None))

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
        cos, sin = position_embeddings
        query, key, value = self.heads(hidden_states[0], cos[0], sin[0])
        output = paged_step.attend(
            self.layer_idx, query, key, value, scale=self._scale, sliding_window=self._sliding_window, softcap=None
        )
        return self.output(output.reshape(len(output), -1)).unsqueeze(0), None


def fuse_layers(model: nn.Module) -> None:
    """Replaces the norms, the attention and MLP modules in `model` that compute exactly this, and its head.

    Does nothing for a model that is not on the CPU or not in fp32. The model is for inference from then on.
    """
    fuse_norms(model)  # first: `CpuHeads` takes their weights
    for name, module in list(model.named_modules()):
        if type(module) in (Qwen3Attention, LlamaAttention):
            if has_plain_heads(module):
                model.set_submodule(name, CpuAttention(module))
        elif type(module) in (Qwen3MLP, LlamaMLP):
            is_silu = getattr(module.config, "hidden_act", None) == "silu"
            if is_silu and _are_plain(module, "gate_proj", "up_proj") and _is_plain_output(module, "down_proj"):
                model.set_submodule(name, CpuMLP(module))
    head = getattr(model, "lm_head", None)
    if isinstance(head, nn.Linear) and is_plain(head):
        model.lm_head = CpuLinear(head.weight)


def has_plain_heads(attention: nn.Module) -> bool:
    """Whether an attention module's projections and norms are such that `CpuHeads` computes the same."""
    norms = (getattr(attention, "q_norm", None), getattr(attention, "k_norm", None))
    return (
        _are_plain(attention, "q_proj", "k_proj", "v_proj")
        and _is_plain_output(attention, "o_proj")
        and (norms == (None, None) or all(isinstance(norm, CpuRMSNorm) for norm in norms))
    )


def _are_plain(module: nn.Module, *names: str) -> bool:
    return all(is_plain(getattr(module, name)) for name in names)


def _fused(module: nn.Module, *names: str) -> CpuLinear:
    return CpuLinear(*(cast(nn.Linear, getattr(module, name)).weight for name in names))


def _is_plain_output(module: nn.Module, name: str) -> bool:
    output = getattr(module, name)
    return is_plain(output.partial if isinstance(output, SummedOverRanks) else output)


def _fused_output(module: nn.Module, name: str) -> nn.Module:
    output = getattr(module, name)
    if isinstance(output, SummedOverRanks):
        return SummedOverRanks(_fused(output, "partial"), output.group)
    return _fused(module, name)


@fast_jit
def _split_heads(
    projected: Floats,  # [num_rows, (num_heads + 2 · num_kv_heads) · head_dim]
    query_norm: Floats,  # [head_dim]; empty: no norm
    key_norm: Floats,
    eps: np.float32,
    cos: Floats,  # [num_rows, head_dim]
    sin: Floats,
    query: Floats,  # [num_rows, num_heads, head_dim]
    key_value: Floats,  # [2, num_rows, num_kv_heads, head_dim]
) -> None:
    num_rows, num_heads, head_dim = query.shape
    num_kv_heads = key_value.shape[2]
    half = head_dim // 2
    normed = np.empty(head_dim, np.float32)
    for row in range(num_rows):
        for head in range(num_heads + num_kv_heads):
            weight = query_norm if head < num_heads else key_norm
            output = query[row, head] if head < num_heads else key_value[0, row, head - num_heads]
            heads = projected[row, head * head_dim : (head + 1) * head_dim]
            if len(weight):
                squares = np.float32(0)
                for i in range(head_dim):
                    squares += heads[i] * heads[i]
                scale = np.float32(1) / np.sqrt(squares / np.float32(head_dim) + eps)
                for i in range(head_dim):
                    normed[i] = heads[i] * scale * weight[i]
            else:
                for i in range(head_dim):
                    normed[i] = heads[i]
            for i in range(half):
                output[i] = normed[i] * cos[row, i] - normed[half + i] * sin[row, i]
            for i in range(half):
                output[half + i] = normed[half + i] * cos[row, half + i] + normed[i] * sin[row, half + i]
        first = (num_heads + num_kv_heads) * head_dim
        for head in range(num_kv_heads):
            for i in range(head_dim):
                key_value[1, row, head, i] = projected[row, first + head * head_dim + i]
