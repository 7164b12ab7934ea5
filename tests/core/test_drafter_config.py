"""What drafters' configs say, in the forms found in published checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dflash_core.errors import CheckpointMismatch, CheckpointNotFound, UnsupportedModel
from dflash_core.models.drafter_config import DrafterConfig, LayerAttention, default_target_layer_ids

QWEN3_4B_B16: dict[str, Any] = {
    "architectures": ["DFlashDraftModel"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoModel": "dflash.DFlashDraftModel"},
    "block_size": 16,
    "bos_token_id": 151643,
    "dflash_config": {"mask_token_id": 151669, "target_layer_ids": [1, 9, 17, 25, 33]},
    "dtype": "bfloat16",
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "initializer_range": 0.02,
    "intermediate_size": 9728,
    "layer_types": ["full_attention"] * 5,
    "max_position_embeddings": 40960,
    "max_window_layers": 5,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 5,
    "num_key_value_heads": 8,
    "num_target_layers": 36,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
FULL, SLIDING = LayerAttention(None, False), LayerAttention(2048, True)
MIXED = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"]


def parsed(**changes: Any) -> DrafterConfig:
    """The config with keys changed; `dflash` adds to dflash_config, a value of `...` removes a key."""
    dflash = QWEN3_4B_B16["dflash_config"] | changes.pop("dflash", {})
    raw = QWEN3_4B_B16 | {"dflash_config": {k: v for k, v in dflash.items() if v is not ...}} | changes
    return DrafterConfig.from_json({k: v for k, v in raw.items() if v is not ...})


def test_a_published_config() -> None:
    config = parsed()
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (151936, 2560, 9728)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (32, 8, 128)
    assert (config.draft_block_size, config.depth, config.num_target_layers) == (16, 15, 36)
    assert config.target_layer_ids == (1, 9, 17, 25, 33)
    assert config.mask_token_id == 151669
    assert config.layers == (FULL,) * 5
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 1e6}
    assert DrafterConfig.from_json(config.to_json()) == config


def test_default_layer_ids() -> None:
    assert parsed(dflash={"target_layer_ids": ...}).target_layer_ids == (1, 9, 17, 25, 33)
    assert default_target_layer_ids(36, 1) == (18,)
    assert default_target_layer_ids(13, 1) == (6,)
    # Half to even, as Python rounds: 1 + 0.5 · 7 = 4.5 → 4 and 1 + 0.5 · 9 = 5.5 → 6.
    assert default_target_layer_ids(11, 3) == (1, 4, 8)
    assert default_target_layer_ids(13, 3) == (1, 6, 10)


def test_both_styles_of_rope() -> None:
    yarn = {"factor": 4.0, "original_max_position_embeddings": 32768}
    expected = yarn | {"rope_type": "yarn", "rope_theta": 1e6}
    assert parsed(rope_scaling=yarn | {"type": "yarn"}).rope_parameters == expected
    assert parsed(rope_scaling=yarn | {"rope_type": "yarn"}).rope_parameters == expected
    assert parsed(rope_theta=..., rope_scaling=..., rope_parameters=expected).rope_parameters == expected
    assert parsed(rope_theta=..., rope_scaling=...).rope_parameters["rope_theta"] == 10000.0
    assert DrafterConfig.from_json(parsed(rope_scaling=expected).to_json()).rope_parameters == expected


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_rope_that_depends_on_the_batch_is_refused(rope_type: str) -> None:
    with pytest.raises(UnsupportedModel, match=rope_type):
        parsed(rope_scaling={"rope_type": rope_type, "factor": 2.0})


def test_sliding_layers_are_causal_in_their_window() -> None:
    expected = (SLIDING, SLIDING, FULL, SLIDING, FULL)
    assert parsed(layer_types=MIXED, use_sliding_window=True, sliding_window=2048).layers == expected
    assert parsed(layer_types=MIXED, use_sliding_window=..., sliding_window=2048).layers == expected
    own_window = parsed(
        layer_types=MIXED, use_sliding_window=True, sliding_window=4096, dflash={"swa_window_size": 2048}
    )
    assert own_window.layers == expected


def test_the_switch_nulls_the_window() -> None:
    assert parsed(layer_types=MIXED, use_sliding_window=False, sliding_window=2048).layers == (FULL,) * 5


def test_causality_may_be_said() -> None:
    sliding = {"layer_types": MIXED, "use_sliding_window": True, "sliding_window": 2048}
    assert [layer.is_causal for layer in parsed(**sliding, is_causal=False).layers] == [False] * 5
    assert [layer.is_causal for layer in parsed(**sliding, dflash={"causal": False}).layers] == [False] * 5
    assert [layer.is_causal for layer in parsed(dflash={"causal": True}).layers] == [True] * 5
    both = parsed(**sliding, is_causal=True, dflash={"causal": False})
    assert [layer.is_causal for layer in both.layers] == [True] * 5


def test_a_window_for_every_layer() -> None:
    config = parsed(dflash={"use_swa": True, "swa_window_size": 512, "causal": False})
    assert config.layers == (LayerAttention(512, False),) * 5


def test_qwen3s_rule_where_layer_types_are_absent() -> None:
    config = parsed(layer_types=..., use_sliding_window=True, sliding_window=2048, max_window_layers=3)
    assert config.layers == (FULL, FULL, FULL, SLIDING, SLIDING)


def test_unknown_keys_of_dflash_config_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="'attention_sink_bias', 'markov_rank'"):
        parsed(dflash={"markov_rank": 8, "attention_sink_bias": True})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"block_size": 1}, "got 1"),
        ({"block_size": ...}, "block_size ≥ 1, got None"),
        ({"num_target_layers": ...}, "num_target_layers"),
        ({"dflash": {"mask_token_id": ...}}, "mask_token_id"),
        ({"dflash": {"mask_token_id": 151936}}, "151936 is not below vocab_size 151936"),
        ({"dflash": {"target_layer_ids": [1, 36]}}, r"\[1, 36\] must lie in 0 … num_target_layers − 1 = 35"),
        ({"layer_types": ["full_attention"] * 4, "use_sliding_window": True}, "names 4 layers.* is 5"),
        ({"layer_types": ["linear_attention"] * 5, "use_sliding_window": True}, "linear_attention"),
        ({"layer_types": MIXED, "use_sliding_window": True}, "sliding_window"),
        ({"num_key_value_heads": 5}, r"\(32\).*\(5\)"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((CheckpointMismatch, UnsupportedModel), match=message):
        parsed(**changes)


def test_loading(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match=r"config\.json"):
        DrafterConfig.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_4B_B16))
    assert DrafterConfig.load(tmp_path) == parsed()
