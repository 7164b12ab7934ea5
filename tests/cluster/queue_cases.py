"""Sequences for tests of what happens before a router sends anything."""

from __future__ import annotations

import numpy as np

from cluster.requests import GenerationRequest, LatencyClass
from cluster.router.sequence import Sequence
from dflash_core.contracts import SamplingParams, SequenceKey
from tests.cluster.simulated_client import Client


def make_sequence(
    name: str,
    *,
    num_tokens: int = 5,
    num_output: int = 0,
    submitted_at: float = 0.0,
    priority: int = 0,
    latency_class: LatencyClass = LatencyClass.STANDARD,
    max_tokens: int = 20,
) -> Sequence:
    token_ids = np.arange(num_tokens + num_output, dtype=np.int32)
    request = GenerationRequest(
        sequence_id=name,
        token_ids=token_ids,
        num_prompt_tokens=num_tokens,
        max_tokens=max_tokens,
        sampling=SamplingParams(),
        latency_class=latency_class,
        priority=priority,
    )
    return Sequence(request, Client(), SequenceKey(name, 1), submitted_at, token_ids.tolist())
