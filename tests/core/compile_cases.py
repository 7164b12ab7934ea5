"""Targets whose forward is traced as one graph, with Triton's attention; collected like `attention_cases.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from dflash_core.attention.split_kv.launch import is_interpreted
from tests.core.target_models import decode_plainly, generate, make_subject, random_prompt

pytestmark = pytest.mark.slow

FAMILIES = ["llama", "mistral", "gemma2", "gemma3"]
if is_interpreted():  # on a GPU experts are not compiled in fp32 (`dflash_core.models.capture`)
    FAMILIES.append("qwen3_moe")


@pytest.fixture(scope="module")
def device() -> torch.device:
    return torch.device("cpu" if is_interpreted() else "cuda")


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")  # transformers' version checks
@pytest.mark.parametrize("name", FAMILIES)
def test_the_forward_is_one_graph_for_all_sizes(name: str, device: torch.device) -> None:
    subject = make_subject(name, device, attention="triton", compile=True)
    graphs = CompileCounter()
    device_pass: Any = subject.runner._pass
    device_pass._forward = torch.compile(device_pass._run_model, fullgraph=True, backend=graphs)
    for length in (5, 12):
        prompt = random_prompt(length, length)
        assert decode_plainly(subject.runner, prompt, 2) == generate(subject.twin, prompt, 2)
    assert graphs.frame_count == 1
