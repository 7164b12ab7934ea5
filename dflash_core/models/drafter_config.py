"""What a DFlash drafter's `config.json` says (ARCHITECTURE section 6). Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dflash_core.errors import CheckpointMismatch, CheckpointNotFound, UnsupportedModel

ARCHITECTURE = "DFlashDraftModel"

_FULL, _SLIDING = "full_attention", "sliding_attention"
_DFLASH_KEYS = frozenset({"target_layer_ids", "mask_token_id", "causal", "is_causal", "use_swa", "swa_window_size"})
# Their frequencies depend on the longest sequence of the packed batch: one request would change another's draft.
_ROPE_TYPES_REFUSED = frozenset({"dynamic", "longrope"})


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """What a layer's block rows see of [context, block]."""

    sliding_window: int | None  # keys at positions > row's position − sliding_window; None: all
    is_causal: bool  # False: block rows see later block rows too


@dataclass(frozen=True, slots=True)
class DrafterConfig:
    """A DFlash drafter: a Qwen3-style decoder without embedding or head, and what it reads of its target."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    draft_block_size: int  # the root and draft_block_size − 1 predicted tokens
    num_target_layers: int
    target_layer_ids: tuple[int, ...]  # i: the output of target decoder layer i, counted from 0
    mask_token_id: int
    layers: tuple[LayerAttention, ...]
    rope_parameters: Mapping[str, Any]  # in the style of transformers 5: with rope_theta and rope_type
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    attention_bias: bool = False

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def depth(self) -> int:
        """Tokens a draft predicts: slots 1 … draft_block_size − 1."""
        return self.draft_block_size - 1

    @property
    def num_captured(self) -> int:
        """Target layers whose outputs are concatenated into a raw feature."""
        return len(self.target_layer_ids)

    @classmethod
    def load(cls, folder: Path) -> DrafterConfig:
        """Reads `folder/config.json`.

        Raises `CheckpointNotFound`, `CheckpointMismatch` (keys missing or contradictory), `UnsupportedModel`.
        """
        path = folder / "config.json"
        if not path.is_file():
            raise CheckpointNotFound(f"the drafter has no config.json: {path}")
        return cls.from_json(json.loads(path.read_text()))

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> DrafterConfig:
        """Parses the config in the style of transformers 4 or 5. Raises as `load`."""
        architectures = raw.get("architectures") or []
        if ARCHITECTURE not in architectures:
            raise UnsupportedModel(f"a drafter's architectures must contain {ARCHITECTURE!r}, got {architectures}")
        dflash = raw.get("dflash_config") or {}
        if unknown := sorted(set(dflash) - _DFLASH_KEYS):
            raise UnsupportedModel(
                f"the drafter's dflash_config has {', '.join(map(repr, unknown))}, which this server does not implement"
                f" (it knows {', '.join(sorted(_DFLASH_KEYS))})"
            )
        num_heads = _number(raw, "num_attention_heads")
        num_target_layers = _number(raw, "num_target_layers")
        layers = _layers(raw, dflash)
        config = cls(
            vocab_size=_number(raw, "vocab_size"),
            hidden_size=_number(raw, "hidden_size"),
            intermediate_size=_number(raw, "intermediate_size"),
            num_heads=num_heads,
            num_kv_heads=raw.get("num_key_value_heads") or num_heads,
            head_dim=raw.get("head_dim") or 128,
            draft_block_size=_number(raw, "block_size"),
            num_target_layers=num_target_layers,
            target_layer_ids=_target_layer_ids(dflash, num_target_layers, len(layers)),
            mask_token_id=_number(dflash, "mask_token_id", "dflash_config.mask_token_id", least=0),
            layers=layers,
            rope_parameters=_rope_parameters(raw),
            max_position_embeddings=raw.get("max_position_embeddings") or 32768,
            rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
            hidden_act=raw.get("hidden_act", "silu"),
            attention_bias=raw.get("attention_bias", False),
        )
        config._check()
        return config

    def to_json(self) -> dict[str, Any]:
        """The published form of this config: keys in the style of transformers 4."""
        scaling = {k: v for k, v in self.rope_parameters.items() if k != "rope_theta"}
        windows = sorted({layer.sliding_window for layer in self.layers if layer.sliding_window is not None})
        causal = {layer.is_causal for layer in self.layers}
        is_default = all(layer.is_causal == (layer.sliding_window is not None) for layer in self.layers)
        if len(windows) > 1 or not (is_default or len(causal) == 1):
            raise UnsupportedModel(f"the published config has no form for these layers: {self.layers}")
        return {
            "architectures": [ARCHITECTURE],
            "model_type": "qwen3",
            "dtype": "bfloat16",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": self.hidden_act,
            "rms_norm_eps": self.rms_norm_eps,
            "attention_bias": self.attention_bias,
            "max_position_embeddings": self.max_position_embeddings,
            "rope_theta": self.rope_parameters["rope_theta"],
            "rope_scaling": None if scaling == {"rope_type": "default"} else scaling,
            "layer_types": [_FULL if layer.sliding_window is None else _SLIDING for layer in self.layers],
            "use_sliding_window": bool(windows),
            "sliding_window": windows[0] if windows else None,
            "block_size": self.draft_block_size,
            "num_target_layers": self.num_target_layers,
            "dflash_config": {
                "target_layer_ids": list(self.target_layer_ids),
                "mask_token_id": self.mask_token_id,
            }
            | ({} if is_default else {"causal": causal.pop()}),
        }

    def _check(self) -> None:
        if self.draft_block_size < 2:
            raise CheckpointMismatch(f"block_size must be at least 2 (a root and a token), got {self.draft_block_size}")
        if self.num_heads % self.num_kv_heads:
            raise CheckpointMismatch(
                f"num_attention_heads ({self.num_heads}) is no multiple of num_key_value_heads ({self.num_kv_heads})"
            )
        if self.mask_token_id >= self.vocab_size:
            raise CheckpointMismatch(f"mask_token_id {self.mask_token_id} is not below vocab_size {self.vocab_size}")
        outside = [i for i in self.target_layer_ids if not 0 <= i < self.num_target_layers]
        if outside or not self.target_layer_ids:
            raise CheckpointMismatch(
                f"target_layer_ids {list(self.target_layer_ids)} must lie in 0 … num_target_layers − 1"
                f" = {self.num_target_layers - 1}"
            )


def default_target_layer_ids(num_target_layers: int, num_draft_layers: int) -> tuple[int, ...]:
    """The layers a drafter without `target_layer_ids` reads: evenly spaced from 1 to num_target_layers − 3."""
    if num_draft_layers == 1:
        return (num_target_layers // 2,)
    span = num_target_layers - 4
    return tuple(round(1 + i * span / (num_draft_layers - 1)) for i in range(num_draft_layers))


def _target_layer_ids(dflash: Mapping[str, Any], num_target_layers: int, num_draft_layers: int) -> tuple[int, ...]:
    given = dflash.get("target_layer_ids")
    return default_target_layer_ids(num_target_layers, num_draft_layers) if given is None else tuple(given)


def _layers(raw: Mapping[str, Any], dflash: Mapping[str, Any]) -> tuple[LayerAttention, ...]:
    """Section 6: sliding layers are causal within the window unless the config says otherwise; full ones are not."""
    num_layers = _number(raw, "num_hidden_layers")
    window: int | None = dflash.get("swa_window_size") or raw.get("sliding_window")
    if raw.get("use_sliding_window") is False and not dflash.get("use_swa"):
        window = None  # as in Qwen3's own config: the switch nulls the window, and sliding layers become full ones
        types = [_FULL] * num_layers
    else:
        types = raw.get("layer_types") or _default_layer_types(raw, num_layers)
    if len(types) != num_layers:
        raise CheckpointMismatch(f"layer_types names {len(types)} layers, num_hidden_layers is {num_layers}")
    if unknown := sorted(set(types) - {_FULL, _SLIDING}):
        raise UnsupportedModel(f"draft layers must be {_FULL} or {_SLIDING}, got {', '.join(unknown)}")
    given = [v for v in (raw.get("is_causal"), dflash.get("is_causal"), dflash.get("causal")) if v is not None]
    layers = []
    for layer_type in types:
        # `use_swa` gives every layer the window but leaves full layers bidirectional within it.
        slides = layer_type == _SLIDING or bool(dflash.get("use_swa"))
        if slides and window is None:
            raise CheckpointMismatch(
                "a draft layer slides, but sliding_window and dflash_config.swa_window_size are unset"
            )
        is_causal = bool(given[0]) if given else layer_type == _SLIDING
        layers.append(LayerAttention(window if slides else None, is_causal))
    return tuple(layers)


def _default_layer_types(raw: Mapping[str, Any], num_layers: int) -> list[str]:
    """Qwen3's rule for configs without `layer_types`: the layers from `max_window_layers` on slide."""
    first = raw.get("max_window_layers", 28) if raw.get("use_sliding_window") else num_layers
    return [_SLIDING if i >= first else _FULL for i in range(num_layers)]


def _rope_parameters(raw: Mapping[str, Any]) -> dict[str, Any]:
    """One dict with rope_theta and rope_type from either style of config."""
    given = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    if any(isinstance(value, Mapping) for value in given.values()):
        raise UnsupportedModel(f"rope_parameters per layer type are not implemented for drafters: {given}")
    rope_type = given.pop("type", None)
    given.setdefault("rope_type", rope_type or "default")
    given.setdefault("rope_theta", float(raw.get("rope_theta") or 10000.0))
    if given["rope_type"] in _ROPE_TYPES_REFUSED:
        raise UnsupportedModel(
            f"rope_type {given['rope_type']!r}: its frequencies depend on the longest sequence of the batch"
        )
    return given


def _number(raw: Mapping[str, Any], key: str, name: str = "", least: int = 1) -> int:
    value = raw.get(key)
    if not isinstance(value, int) or value < least:
        raise CheckpointMismatch(f"the drafter's config needs {name or key} ≥ {least}, got {value}")
    return value
