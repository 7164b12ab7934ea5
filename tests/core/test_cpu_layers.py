"""The layers that stand in on the CPU against the modules that they replace."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP

from dflash_core.attention.batch import RaggedBatch, RowGroup
from dflash_core.attention.registration import PAGED_TREE, PagedStep, register_paged_tree
from dflash_core.cache.pools import KvPool, KvShape
from dflash_core.models.cpu_drafter import CpuDFlashAttention, fuse_drafter
from dflash_core.models.cpu_layers import CpuAttention, CpuMLP, fuse_layers
from dflash_core.models.cpu_linear import CpuLinear
from dflash_core.models.cpu_norms import fuse_norms
from dflash_core.models.drafter import DFlashDrafter
from dflash_core.models.drafter_config import DrafterConfig, LayerAttention

SHAPE = {
    "vocab_size": 40, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.3,
}  # fmt: skip


def _randomised(model: nn.Module) -> nn.Module:
    for name, param in model.named_parameters():
        if "norm" in name:
            nn.init.uniform_(param, 0.5, 1.5)
    return model.eval().requires_grad_(False)


def _models() -> list[PreTrainedModel]:
    torch.manual_seed(1)
    window = {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
    configs = [LlamaConfig(**SHAPE), Qwen3Config(**SHAPE), Qwen3Config(**SHAPE, **window)]
    classes = [LlamaForCausalLM, Qwen3ForCausalLM, Qwen3ForCausalLM]
    register_paged_tree()
    models = [_randomised(make(config)) for make, config in zip(classes, configs, strict=True)]
    for model in models:
        model.set_attn_implementation(PAGED_TREE)
    return models


def _forward(model: PreTrainedModel, pool: KvPool) -> Tensor:
    """Two prefill rows and a tree of four rows, over a prefix of three tokens each."""
    group = RowGroup.tree(np.array([0, 1, 2, 1], np.int32), np.array([4, 3, 3, 4], np.int32), 3, [0])
    batch = RaggedBatch.pack([RowGroup.causal(2, 3, [1]), group], 8)
    step = PagedStep(batch, pool, 2, torch.tensor([11, 12]))
    token_ids = torch.tensor([[3, 5, 7, 9, 11, 13]])
    positions = torch.from_numpy(batch.positions.astype(np.int64))[None]
    return model(input_ids=token_ids, position_ids=positions, use_cache=False, paged_step=step).logits


@torch.inference_mode()
@pytest.mark.parametrize("model", _models(), ids=["llama", "qwen3", "qwen3-window"])
def test_a_model_computes_the_same_and_keeps_the_same_keys_and_values(model: PreTrainedModel) -> None:
    fused = copy.deepcopy(model)
    fuse_norms(fused)
    fuse_layers(fused)
    layers = fused.get_decoder().layers
    assert all(isinstance(layer.self_attn, CpuAttention) and isinstance(layer.mlp, CpuMLP) for layer in layers)
    pools = []
    for _ in range(2):
        pools.append(KvPool(KvShape(2, 2, 16, torch.float32), 3, 8, 8, torch.device("cpu")))
        pools[-1].pages.copy_(torch.randn(pools[-1].pages.shape, generator=torch.Generator().manual_seed(2)))
    torch.testing.assert_close(_forward(fused, pools[0]), _forward(model, pools[1]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pools[0].pages, pools[1].pages)
    torch.testing.assert_close(pools[0].staging, pools[1].staging)


@torch.inference_mode()
def test_a_drafter_computes_the_same() -> None:
    torch.manual_seed(2)
    config = DrafterConfig(
        vocab_size=40, hidden_size=48, intermediate_size=96, num_heads=6, num_kv_heads=2, head_dim=16,
        draft_block_size=4, num_target_layers=4, target_layer_ids=(0, 2), mask_token_id=1,
        layers=(LayerAttention(sliding_window=None, is_causal=False),) * 2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4}, max_position_embeddings=64, rms_norm_eps=1e-6,
    )  # fmt: skip
    drafter = _randomised(DFlashDrafter(config))
    fused = copy.deepcopy(drafter)
    fuse_drafter(fused)
    assert all(isinstance(layer.self_attn, CpuDFlashAttention) for layer in fused.layers)
    features, block, positions = torch.randn(5, 48), torch.randn(4, 48), torch.arange(5, 9)

    def run(model: DFlashDrafter) -> Tensor:
        context = model.context_kv(features, torch.arange(5))

        def attend(layer_idx: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = (
                torch.cat(pair).transpose(0, 1) for pair in zip(context[layer_idx], (key, value), strict=True)
            )
            output = nn.functional.scaled_dot_product_attention(query.transpose(0, 1), keys, values, enable_gqa=True)
            return output.transpose(0, 1)

        return model(block, positions, attend)

    torch.testing.assert_close(run(fused), run(drafter), rtol=1e-4, atol=1e-4)


def test_modules_that_compute_something_else_stay() -> None:
    biased = Qwen3ForCausalLM(Qwen3Config(**SHAPE, attention_bias=True))
    low = Qwen3ForCausalLM(Qwen3Config(**SHAPE)).bfloat16()
    gelu = Qwen3ForCausalLM(Qwen3Config(**SHAPE, hidden_act="gelu"))
    for model in (biased, low, gelu):
        fuse_norms(model)
        fuse_layers(model)
    assert not any(isinstance(module, CpuAttention) for model in (biased, low) for module in model.modules())
    assert all(isinstance(layer.mlp, Qwen3MLP) for model in (low, gelu) for layer in model.get_decoder().layers)


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(1, 24), (7, 24), (70, 24), (1, 1, 24), (1, 5, 24)])
def test_joined_products_equal_their_parts_for_any_number_of_rows(shape: tuple[int, ...]) -> None:
    parts = [nn.Linear(24, width, bias=False) for width in (8, 16, 3)]
    joined, rows = CpuLinear(*(part.weight for part in parts)), torch.randn(shape)
    torch.testing.assert_close(joined(rows), torch.cat([part(rows) for part in parts], -1), rtol=1e-5, atol=1e-5)
