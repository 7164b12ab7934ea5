"""Whether a model's forward can be compiled as one graph and captured in CUDA graphs."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel


def capture_obstacle(model: PreTrainedModel, has_grouped_experts: bool) -> str | None:
    """The reason why not, on a GPU; None where nothing in the forward waits for the host or has shapes that depend on
    data.

    `has_grouped_experts` as `group_experts` said.
    """
    if not model._can_compile_fullgraph:
        return f"transformers does not count {type(model).__name__} among the models that compile as one graph"
    if has_grouped_experts and model.device.type == "cuda":
        return _grouped_product_obstacle(model.dtype, torch.cuda.get_device_capability(model.device))
    return None


def _grouped_product_obstacle(dtype: torch.dtype, capability: tuple[int, int]) -> str | None:
    """torch's grouped product is one kernel in bf16 from compute capability 8.0 on; elsewhere the host reads the sizes
    of the groups and launches a product for each."""
    if dtype != torch.bfloat16:
        return f"its experts' grouped product waits for the host in {dtype}: only torch.bfloat16 has a kernel for it"
    if capability < (8, 0):
        return (
            f"its experts' grouped product needs compute capability 8.0, this GPU has {capability[0]}.{capability[1]}"
        )
    return None
