"""How a model attends, seen by running one row through it: what its config alone does not tell for certain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from dflash_core.attention.registration import refuse_mask, refuse_unknown_arguments
from dflash_core.cache.pools import KvShape
from dflash_core.errors import UnsupportedModel

_PROBE = "paged_tree_probe"


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What one layer handed to its attention function."""

    layer_idx: int
    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    sliding_window: int | None


@torch.inference_mode()
def probe_attention(model: PreTrainedModel) -> list[AttentionCall]:
    """Runs token 0 with an attention that only looks; the model must be set to our attention again afterwards.

    Raises `UnsupportedModel` for an argument of the attention that is not implemented.
    """
    AttentionInterface.register(_PROBE, _look)
    model.set_attn_implementation(_PROBE)
    calls: list[AttentionCall] = []
    row = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    model(input_ids=row, position_ids=row, use_cache=False, attention_calls=calls)
    return calls


def kv_shape(config: PreTrainedConfig, dtype: torch.dtype, calls: Sequence[AttentionCall]) -> KvShape:
    """What a token's keys and values look like. Raises `UnsupportedModel` where layers attend in a way that our
    attention or pages have no form for."""
    num_layers: int = config.num_hidden_layers
    if reasons := list(_reasons(config, num_layers, calls)):
        raise UnsupportedModel(f"{config.model_type} cannot be a target: {'; '.join(reasons)}")
    return KvShape(num_layers, calls[0].num_kv_heads, calls[0].key_dim, dtype)


def _reasons(config: PreTrainedConfig, num_layers: int, calls: Sequence[AttentionCall]) -> Iterator[str]:
    times = Counter(call.layer_idx for call in calls)
    if odd := [f"layer {i} attends {times[i]} times" for i in range(num_layers) if times[i] != 1]:
        yield f"{odd[0]}, and {len(odd) - 1} more layers not once" if len(odd) > 1 else odd[0]
    if extra := sorted(times.keys() - range(num_layers)):
        yield f"attention in layers {extra}, beyond its num_hidden_layers {num_layers}"
    shapes = sorted({(call.num_kv_heads, call.key_dim, call.value_dim) for call in calls})
    if len(shapes) > 1:
        yield f"its layers differ in KV heads, key size or value size: {', '.join(map(str, shapes))}"
    elif shapes and shapes[0][1] != shapes[0][2]:
        yield f"its keys have {shapes[0][1]} dimensions, its values {shapes[0][2]}"
    windows = {call.layer_idx: call.sliding_window for call in calls}
    if any(windows.get(i) is None for i in _sliding_layers(config, num_layers)):
        yield "its sliding window is in a mask alone, and its layers do not tell it to their attention"


def _sliding_layers(config: PreTrainedConfig, num_layers: int) -> list[int]:
    """The layers that slide by the config."""
    layer_types = getattr(config, "layer_types", None)
    if layer_types:
        return [i for i, layer_type in enumerate(layer_types) if layer_type == "sliding_attention"]
    slides = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return list(range(num_layers)) if slides else []


def _look(
    module: nn.Module,
    query: Tensor,  # [1, num_heads, 1, head_dim]
    key: Tensor,  # [1, num_kv_heads, 1, key_dim]
    value: Tensor,  # [1, num_kv_heads, 1, value_dim]
    attention_mask: Tensor | None,
    *,
    attention_calls: list[AttentionCall] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """One row sees its own key alone, whatever scale, window and softcap are: so its output is its value."""
    refuse_mask(module, attention_mask)
    refuse_unknown_arguments(others)
    if attention_calls is None:
        raise UnsupportedModel(f"{type(module).__name__} is not given the keyword arguments of its model's forward")
    layer_idx = getattr(module, "layer_idx", None)
    if not isinstance(layer_idx, int):
        raise UnsupportedModel(f"{type(module).__name__} does not know the index of its layer")
    attention_calls.append(
        AttentionCall(layer_idx, query.shape[1], key.shape[1], key.shape[3], value.shape[3], sliding_window)
    )
    return value.repeat_interleave(query.shape[1] // value.shape[1], dim=1).transpose(1, 2), None
