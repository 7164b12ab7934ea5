"""Families that are served without a line of their own: plain decoding gives the tokens of `generate`."""

from __future__ import annotations

import pytest
import transformers
from transformers import PreTrainedConfig

from tests.core.target_configs import SIZES
from tests.core.target_models import decode_plainly, generate, make_subject, random_prompt

_MOE = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
FAMILIES: dict[str, dict[str, object]] = {
    "Ernie4_5Config": {},
    "Exaone4Config": {"sliding_window": 6},
    "GemmaConfig": {},
    "Glm4Config": {},
    "Glm4MoeConfig": {**_MOE, "n_routed_experts": 6, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "GPTNeoXConfig": {},
    "GraniteConfig": {},
    "JetMoeConfig": {"num_local_experts": 6},
    "MixtralConfig": {"num_local_experts": 6},
    "Olmo3Config": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "OlmoeConfig": {"num_experts": 6, "num_experts_per_tok": 2},
    "PhiConfig": {},
    "Qwen2MoeConfig": {**_MOE, "num_experts": 6, "shared_expert_intermediate_size": 16},
    "SeedOssConfig": {},
    "SmolLM3Config": {},
    "Starcoder2Config": {"sliding_window": 6},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_decoding_equals_generate(name: str) -> None:
    config: PreTrainedConfig = getattr(transformers, name)(**SIZES, **FAMILIES[name])
    subject = make_subject(config)
    outputs = set()
    for seed, length in enumerate((1, 17)):
        prompt = random_prompt(seed, length)
        expected = generate(subject.twin, prompt, 16)
        assert decode_plainly(subject.runner, prompt, 16) == expected
        outputs |= set(expected)
    assert len(outputs) > 2  # else the prompts did not matter
