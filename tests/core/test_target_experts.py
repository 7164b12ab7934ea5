"""Mixture-of-experts targets: which implementation computes them, that rows do not feel each other, what can be
captured."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from dflash_core.models.capture import _grouped_product_obstacle, capture_obstacle
from dflash_core.models.experts import group_experts
from dflash_core.models.target import TargetModel
from tests.core.target_configs import CONFIGS


def model_of(name: str, experts: str | None = None) -> PreTrainedModel:
    config = copy.deepcopy(CONFIGS[name])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, experts_implementation=experts).eval().requires_grad_(False)
        for parameter in model.parameters():
            nn.init.normal_(parameter, 0.0, 0.5)
    return model


@torch.no_grad()
def experts_oracle(block: nn.Module, row: Tensor) -> Tensor:
    """One row through a Qwen3 MoE block in float64, expert by expert."""
    row = row.double()
    probabilities = (block.gate.weight.double() @ row).softmax(-1)
    chosen = probabilities.argsort(descending=True)[: block.gate.top_k].tolist()
    output = torch.zeros_like(row)
    for expert in chosen:
        gate, up = (block.experts.gate_up_proj[expert].double() @ row).chunk(2)
        hidden = nn.functional.silu(gate) * up
        weight = probabilities[expert] / probabilities[chosen].sum()
        output += weight * (block.experts.down_proj[expert].double() @ hidden)
    return output


@pytest.mark.parametrize("experts", [None, "eager", "batched_mm"])
def test_a_target_computes_its_experts_as_grouped_products(experts: str | None) -> None:
    model = model_of("qwen3_moe", experts)
    TargetModel(model)
    assert model.get_experts_implementation() == {"": "grouped_mm"}


def test_a_model_without_experts_has_none_to_set() -> None:
    assert not group_experts(model_of("qwen3"))
    assert group_experts(model_of("qwen3_moe"))


def test_what_a_row_gets_does_not_depend_on_its_neighbours() -> None:
    """Not on how many they are, nor on all of them wanting one expert, nor on padding: zeros, or no numbers at all."""
    model = model_of("qwen3_moe")
    assert group_experts(model)
    block = model.model.layers[0].mlp
    rows = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([experts_oracle(block, row) for row in rows]).float()
    crowd = rows[:1].expand(100, -1)
    for neighbours in (rows[:0], crowd, torch.zeros(10, 32), torch.full((10, 32), float("nan"))):
        batch = torch.cat([rows, neighbours])
        torch.testing.assert_close(block(batch[None])[0, :6], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(block(batch.flip(0)[None])[0].flip(0)[:6], expected, rtol=1e-4, atol=1e-5)


def test_what_keeps_a_forward_from_being_captured() -> None:
    target = TargetModel(model_of("qwen3"))
    assert target.capture_obstacle is None
    assert _grouped_product_obstacle(torch.bfloat16, (9, 0)) is None
    assert "torch.float32" in str(_grouped_product_obstacle(torch.float32, (9, 0)))
    assert "this GPU has 7.5" in str(_grouped_product_obstacle(torch.bfloat16, (7, 5)))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["qwen3", "gemma3", "qwen3_moe"])
def test_on_a_gpu_every_forward_is_captured_but_for_experts_in_other_dtypes(name: str) -> None:
    has_experts = name == "qwen3_moe"
    assert capture_obstacle(model_of(name).to("cuda", torch.bfloat16), has_experts) is None
    assert (capture_obstacle(model_of(name).to("cuda"), has_experts) is not None) == has_experts


@pytest.mark.gpu
def test_grouped_experts_are_captured_in_a_graph() -> None:
    """Replayed with rows that are routed otherwise than those of the capture."""
    model = model_of("qwen3_moe").to("cuda", torch.bfloat16)
    assert group_experts(model)
    block = model.model.layers[0].mlp
    first, second = torch.randn(2, 1, 24, 32, device="cuda", dtype=torch.bfloat16)
    static = first.clone()
    block(static)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = block(static)
    for rows in (second, first):
        static.copy_(rows)
        graph.replay()
        torch.testing.assert_close(output, block(rows))
