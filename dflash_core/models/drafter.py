"""The DFlash drafter (arXiv 2602.06036; ARCHITECTURE section 6), one module for training and inference.

It predicts a whole block in one pass: the block [root, MASK, MASK, …] attends to projected hidden states of the
target (the context) and to itself. Embedding and head are the target's and not part of it. How rows attend is given
by the caller as `attend`: inference reads context keys and values from pages, training masks dense tensors.

Parameter names are those of the published checkpoints. Tensors have any leading dimensions: `[rows, …]` when packed,
`[batch, rows, …]` in training.
"""

from __future__ import annotations

from typing import Protocol, cast

from torch import Tensor, nn
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3RMSNorm, Qwen3RotaryEmbedding, rotate_half

from dflash_core.models.drafter_config import DrafterConfig


class Attend(Protocol):
    """Attention of one layer's block rows over the context and the block.

    The softmax scale is head_dim ** −0.5; `config.layers[layer_idx]` says what a row sees.
    """

    def __call__(self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query `[..., rows, num_heads, head_dim]`, key and value of the block `[..., rows, num_kv_heads, head_dim]`,
        rotated; returns `[..., rows, num_heads, head_dim]`."""
        ...


class ContextProjection(nn.Module):
    """`fc` and `hidden_norm`: the part of a drafter that its target applies before features travel."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(config.num_captured * config.hidden_size, config.hidden_size, bias=False)
        self.hidden_norm = Qwen3RMSNorm(config.hidden_size, config.rms_norm_eps)

    def project_context(self, raw_features: Tensor) -> Tensor:
        """Outputs of the captured layers, concatenated in the order of `target_layer_ids`, to context features.

        `[..., tokens, num_captured * hidden]` → `[..., tokens, hidden]`.
        """
        projected: Tensor = self.hidden_norm(self.fc(raw_features))
        return projected


class DFlashAttention(nn.Module):
    def __init__(self, config: DrafterConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        query_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.attention_bias)
        self.q_norm = Qwen3RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = Qwen3RMSNorm(config.head_dim, config.rms_norm_eps)

    def key_value(self, states: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated keys and values of context features or of a block's normed states, by the same projections."""
        key = _rotate(self.k_norm(self._heads(self.k_proj(states))), cos, sin)
        return key, self._heads(self.v_proj(states))

    def forward(self, states: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        query = _rotate(self.q_norm(self._heads(self.q_proj(states))), cos, sin)
        key, value = self.key_value(states, cos, sin)
        output: Tensor = self.o_proj(attend(self.layer_idx, query, key, value).flatten(-2))
        return output

    def _heads(self, states: Tensor) -> Tensor:
        return states.view(*states.shape[:-1], -1, self.head_dim)


class DFlashLayer(nn.Module):
    def __init__(self, config: DrafterConfig, qwen3: Qwen3Config, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = DFlashAttention(config, layer_idx)
        self.mlp = Qwen3MLP(qwen3)
        self.input_layernorm = Qwen3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Qwen3RMSNorm(config.hidden_size, config.rms_norm_eps)

    def context_kv(self, context_features: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the context. Unlike the block, it does not pass through `input_layernorm`.

        context_features `[..., tokens, hidden]`, cos and sin `[..., tokens, head_dim]` of the tokens' positions;
        returns two `[..., tokens, num_kv_heads, head_dim]`.
        """
        return self.self_attn.key_value(context_features, cos, sin)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """hidden `[..., rows, hidden]`, cos and sin `[..., rows, head_dim]` of the rows' positions."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cos, sin, attend)
        output: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return output


class DFlashDrafter(ContextProjection):
    """All of a drafter. It is a `ContextProjection` too, so that `fc` and `hidden_norm` keep their published names."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__(config)
        self.config = config
        qwen3 = qwen3_config(config)
        self.layers = nn.ModuleList(DFlashLayer(config, qwen3, i) for i in range(config.num_layers))
        self.norm = Qwen3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = Qwen3RotaryEmbedding(qwen3)

    def rotary(self, position_ids: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin `[..., rows, head_dim]` for positions `[..., rows]`, in the dtype of `like`."""
        rows = position_ids.reshape(-1, position_ids.shape[-1])  # transformers before 5.23 takes [batch, rows] alone
        cos, sin = self.rotary_emb(like, rows)
        return cos.view(*position_ids.shape, -1), sin.view(*position_ids.shape, -1)

    def context_kv(self, context_features: Tensor, position_ids: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the context for each layer, as `DFlashLayer.context_kv`, at positions `[..., tokens]`."""
        cos, sin = self.rotary(position_ids, context_features)
        return [cast(DFlashLayer, layer).context_kv(context_features, cos, sin) for layer in self.layers]

    def forward(self, block_embeds: Tensor, position_ids: Tensor, attend: Attend) -> Tensor:
        """Embeddings `[..., rows, hidden]` of one or many blocks [root, MASK, …], at positions `[..., rows]`
        (int64), to the states `[..., rows, hidden]` that the target's head turns into logits."""
        cos, sin = self.rotary(position_ids, block_embeds)
        hidden = block_embeds
        for layer in self.layers:
            hidden = layer(hidden, cos, sin, attend)
        normed: Tensor = self.norm(hidden)
        return normed


def qwen3_config(config: DrafterConfig) -> Qwen3Config:
    """What the classes taken from `transformers` need to know."""
    return Qwen3Config(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        hidden_act=config.hidden_act,
        max_position_embeddings=config.max_position_embeddings,
        rope_parameters=dict(config.rope_parameters),
    )


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of `[..., rows, heads, head_dim]` by cos and sin `[..., rows, head_dim]`."""
    half_turned: Tensor = rotate_half(heads)
    return heads * cos.unsqueeze(-2) + half_turned * sin.unsqueeze(-2)
