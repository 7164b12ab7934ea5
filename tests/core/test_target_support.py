"""Models that cannot be targets: by their config, before any weight is read, or by how their layers attend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, Phi3Config, PreTrainedConfig

from dflash_core.cache.pools import KvShape
from dflash_core.errors import UnsupportedModel
from dflash_core.models.attention_probe import AttentionCall, kv_shape
from dflash_core.models.target import TargetModel
from dflash_core.models.target_support import check_supported
from tests.core.target_configs import CONFIGS, MIXED_LAYERS, SIZES

_LONG_ROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_configs_that_are_served(config: PreTrainedConfig) -> None:
    check_supported(config)


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("BartConfig", ["it has an encoder"]),
        ("DeepseekV3Config", ["multi-head latent attention .kv_lora_rank 512"]),
        ("FalconConfig", ["FalconForCausalLM does not let its attention be replaced"]),
        ("FalconH1Config", ["layers of type hybrid", "state-space or hybrid"]),
        ("Gemma3Config", ["it is multimodal"]),
        ("Gemma3nTextConfig", ["15 layers read the keys and values of others"]),
        ("GptOssConfig", ["attention sinks .s_aux"]),
        ("JambaConfig", ["layers of type linear_attention", "state-space or hybrid"]),
        ("Llama4Config", ["it is multimodal"]),
        ("Llama4TextConfig", ["layers of type chunked_attention"]),
        ("Mamba2Config", ["state-space or hybrid"]),
        ("MambaConfig", ["state-space or hybrid"]),
        ("MusicgenConfig", ["it is multimodal"]),
        ("Qwen3NextConfig", ["layers of type linear_attention", "state-space or hybrid"]),
        ("T5Config", ["it has an encoder", "no causal language model"]),
    ],
)
def test_configs_are_refused_with_every_reason(name: str, reasons: list[str]) -> None:
    config = getattr(transformers, name)()
    with pytest.raises(UnsupportedModel) as refused:
        check_supported(config)
    assert refused.value.message.startswith(f"{config.model_type} cannot be a target: ")
    for reason in reasons:
        assert refused.match(reason)


@pytest.mark.parametrize(
    ("config", "rope_type"),
    [
        (LlamaConfig(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), "dynamic"),
        (Phi3Config(**SIZES, original_max_position_embeddings=64, rope_parameters=_LONG_ROPE), "longrope"),
    ],
    ids=["dynamic", "longrope"],
)
def test_rope_that_depends_on_the_batch_is_refused(config: PreTrainedConfig, rope_type: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"rope_type {rope_type}: its frequencies depend on the longest"):
        check_supported(config)


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("BertConfig", {"is_decoder": True}, "BertModel has no `layers` and final norm"),
        ("DiffLlamaConfig", {}, "layer 0 attends 2 times, and 2 more layers not once"),
        ("DogeConfig", {}, "DogeAttention has a mask of its own"),
        (
            "Gemma4TextConfig",
            {"hidden_size_per_layer_input": 0},
            r"differ in KV heads.*: \(2, 8, 8\), \(2, 512, 512\)",
        ),
        ("NemotronConfig", {}, "NemotronAttention is not given the keyword arguments"),
    ],
)
def test_ways_to_attend_that_have_no_form_here(name: str, fields: dict[str, Any], reason: str) -> None:
    """None of them is visible in the config, and each would be wrong in silence, or fail in the first round."""
    config = getattr(transformers, name)(**SIZES | fields)
    with pytest.raises(UnsupportedModel, match=reason):
        TargetModel(AutoModelForCausalLM.from_config(config))


def test_a_window_that_layers_do_not_tell_is_refused() -> None:
    """As Moshi's, which is in the mask alone."""
    config = CONFIGS["gemma3"]
    calls = [
        AttentionCall(i, 4, 2, 8, 8, None if kind == "full_attention" else 6) for i, kind in enumerate(MIXED_LAYERS)
    ]
    assert kv_shape(config, torch.float32, calls) == KvShape(3, 2, 8, torch.float32)
    calls[2] = AttentionCall(2, 4, 2, 8, 8, None)
    with pytest.raises(UnsupportedModel, match="gemma3_text cannot be a target: its sliding window is in a mask alone"):
        kv_shape(config, torch.float32, calls)
    with pytest.raises(UnsupportedModel, match="its keys have 8 dimensions, its values 16"):
        kv_shape(CONFIGS["llama"], torch.float32, [AttentionCall(i, 4, 2, 8, 16, None) for i in range(3)])


def test_attention_arguments_that_are_not_implemented_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nobody knew the model by name."""
    monkeypatch.setattr("dflash_core.models.target_support._WITH_SINKS", frozenset())
    rope = {"rope_type": "default", "rope_theta": 1e4}
    config = transformers.GptOssConfig(**SIZES, num_local_experts=2, num_experts_per_tok=1, rope_parameters=rope)
    with pytest.raises(UnsupportedModel, match="the model passes s_aux to its attention"):
        TargetModel(AutoModelForCausalLM.from_config(config))


def test_a_model_whose_layers_are_not_found_is_refused() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(UnsupportedModel, match=r"GPT2Model has no `layers` and final norm"):
        TargetModel(model)
