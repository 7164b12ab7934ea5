"""Which models can be targets: what is refused at load, and why (ARCHITECTURE section 4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedConfig

from dflash_core.errors import UnsupportedModel

_ATTENTION_LAYERS = frozenset({"full_attention", "sliding_attention"})
_BATCH_WIDE_ROPE = frozenset({"dynamic", "longrope"})
# Known by name to be refused before their weights are read; `attention_probe` finds any other.
_WITH_SINKS = frozenset({"gpt_oss"})


def check_supported(config: PreTrainedConfig) -> None:
    """Raises `UnsupportedModel` with every reason found in the config or in the model class it names."""
    if reasons := [*_reasons(config), *_class_reasons(config)]:
        raise UnsupportedModel(f"{config.model_type} cannot be a target: {'; '.join(reasons)}")


def _reasons(config: PreTrainedConfig) -> Iterator[str]:
    if not _is_text_alone(config):
        yield "it is multimodal (serve its text model)"
        return
    if config.is_encoder_decoder:
        yield "it has an encoder"
    layer_types = set(getattr(config, "layer_types", None) or ())
    if unknown := sorted(layer_types - _ATTENTION_LAYERS):
        yield f"layers of type {', '.join(unknown)}, where only full and sliding attention can serve a tree"
    for rope in _rope_parameters(config):
        if (rope_type := rope.get("rope_type")) in _BATCH_WIDE_ROPE:
            yield f"rope_type {rope_type}: its frequencies depend on the longest sequence of the batch"
    if getattr(config, "kv_lora_rank", None):
        yield f"multi-head latent attention (kv_lora_rank {config.kv_lora_rank})"
    if getattr(config, "num_kv_shared_layers", 0):
        yield f"{config.num_kv_shared_layers} layers read the keys and values of others"
    if config.model_type in _WITH_SINKS:
        yield "attention sinks (s_aux)"
    if getattr(config, "use_bidirectional_attention", False) or getattr(config, "is_causal", True) is False:
        yield "its attention is bidirectional"


def _is_text_alone(config: PreTrainedConfig) -> bool:
    try:
        return config.get_text_config() is config
    except ValueError:  # several of its parts could be the text model
        return False


def _class_reasons(config: PreTrainedConfig) -> Iterator[str]:
    try:
        model_class: Any = AutoModelForCausalLM._model_mapping[type(config)]
    except KeyError:
        yield "transformers has no causal language model for it"
        return
    if getattr(model_class, "_is_stateful", False):
        yield "it is a state-space or hybrid model: its state cannot be shared by a tree"
    elif not getattr(model_class, "_supports_attention_backend", False):
        yield f"{model_class.__name__} does not let its attention be replaced"


def _rope_parameters(config: PreTrainedConfig) -> Iterator[Mapping[str, Any]]:
    """One dict, or one for each layer type."""
    given = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in given.values() if isinstance(value, Mapping)]
    yield from nested or [given]
