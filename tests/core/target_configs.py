"""Small configs of the families that can be targets."""

from __future__ import annotations

from typing import Any

from transformers import (
    Cohere2Config,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCAB_SIZE = 120

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}

MIXED_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]

CONFIGS: dict[str, PreTrainedConfig] = {
    "qwen3": Qwen3Config(**SIZES),
    "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=7),  # every layer slides
    "gemma2": Gemma2Config(  # every other layer slides; softcaps, 1 + weight in norms, scaled embeddings
        **SIZES, sliding_window=6, query_pre_attn_scalar=16, attn_logit_softcapping=3.0, final_logit_softcapping=8.0
    ),
    "gemma3": Gemma3TextConfig(  # two rotary bases, one of them scaled
        **SIZES,
        sliding_window=6,
        query_pre_attn_scalar=16,
        layer_types=MIXED_LAYERS,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
        },
    ),
    "qwen3_moe": Qwen3MoeConfig(
        **SIZES, moe_intermediate_size=16, num_experts=8, num_experts_per_tok=3, norm_topk_prob=True
    ),
    "qwen2": Qwen2Config(**SIZES),  # biases
    "phi3": Phi3Config(  # one matrix for query, key and value; half of each head is rotated
        **SIZES,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    ),
    "olmo2": Olmo2Config(**SIZES),  # norms after attention and MLP, and over all heads of query and key together
    "cohere2": Cohere2Config(  # full layers without rotation, attention beside the MLP, scaled logits, tied embeddings
        **SIZES, sliding_window=6, layer_types=MIXED_LAYERS
    ),
}
