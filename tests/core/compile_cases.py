"""Targets whose forward is traced as one graph, with Triton's attention; collected like `attention_cases.py`."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from transformers import AutoModelForCausalLM

from dflash_core.attention import AttentionBackend, RaggedBatch, RowGroup
from dflash_core.attention.registration import PagedStep
from dflash_core.attention.split_kv.attention import is_interpreted
from dflash_core.attention.split_kv.work_list import HeadShape, work_list_of
from dflash_core.cache.pools import KvPool
from dflash_core.models.target import TargetModel
from tests.core.target_configs import CONFIGS, SIZES, VOCAB_SIZE

_BLOCK_SIZE, _MAX_ROWS = 4, 32


@pytest.fixture(scope="module")
def device() -> torch.device:
    return torch.device("cpu" if is_interpreted() else "cuda")


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")  # transformers' version checks
@pytest.mark.parametrize("name", ["qwen3", "llama", "mistral", "gemma2", "gemma3", "qwen3_moe"])
def test_the_forward_is_one_graph_for_all_sizes(name: str, device: torch.device) -> None:
    """In bf16: in fp32 on the CPU layers are replaced by compiled ones that cannot be traced, nor need to be."""
    config = copy.deepcopy(CONFIGS[name])
    config.num_hidden_layers = 1  # or one of each kind: tracing takes seconds a layer
    if getattr(config, "layer_types", None):
        config.num_hidden_layers = len(set(config.layer_types))
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).to(device, torch.bfloat16)
    target = TargetModel(model, (config.num_hidden_layers - 1,), _MAX_ROWS)
    pools = [KvPool(target.kv_shape, 16, _BLOCK_SIZE, _MAX_ROWS, device) for _ in range(2)]
    graphs = CompileCounter()
    traced = torch.compile(target.forward, fullgraph=True, dynamic=True, backend=graphs)
    with torch.inference_mode():
        for num_rows in (9, 7):
            batch, inputs = round_of(num_rows, device)
            forwards = zip((target.forward, traced), pools, strict=True)
            found = [run(target, forward, batch, inputs, pool) for forward, pool in forwards]
            assert (found[0][0] != 0).any()
            for expected, actual in zip(*found, strict=True):
                torch.testing.assert_close(actual, expected)
    assert graphs.frame_count == 1  # the second size is traced by the first


def round_of(num_rows: int, device: torch.device) -> tuple[RaggedBatch, tuple[Tensor, Tensor, Tensor]]:
    """A prompt of `num_rows` rows and a tree of three, with their token ids, positions and the rows of the logits."""
    depths, ends = np.array([0, 1, 1], np.int32), np.array([3, 2, 3], np.int32)
    groups = [RowGroup.causal(num_rows, 0, range(4)), RowGroup.tree(depths, ends, 5, range(5, 7))]
    batch = RaggedBatch.pack(groups, _BLOCK_SIZE, device)
    heads = HeadShape(SIZES["num_attention_heads"], SIZES["num_key_value_heads"], SIZES["head_dim"], torch.bfloat16)
    batch.work_lists[heads] = work_list_of(batch, heads, device)  # one launch a round, before the graph
    token_ids = np.random.default_rng(num_rows).integers(0, VOCAB_SIZE, batch.num_rows)
    arrays = (token_ids, batch.positions.astype(np.int64), np.array([num_rows - 1, num_rows, num_rows + 2]))
    first, second, third = (torch.from_numpy(array).to(device) for array in arrays)
    return batch, (first, second, third)


def run(
    target: TargetModel,
    forward: object,
    batch: RaggedBatch,
    inputs: tuple[Tensor, Tensor, Tensor],
    pool: KvPool,
) -> list[Tensor]:
    """Logits, captured features, pages and staged rows after one forward."""
    assert callable(forward)
    token_ids, positions, logit_rows = inputs
    num_prefill_rows = batch.num_rows - 3
    slots = torch.arange(num_prefill_rows, device=token_ids.device)
    step = PagedStep(batch, pool, num_prefill_rows, slots, AttentionBackend.TRITON)
    logits = forward(token_ids, positions, step, logit_rows)
    features = target.captured(torch.arange(batch.num_rows, device=token_ids.device))
    return [logits.clone(), features, pool.pages.clone(), pool.staging.clone()]
