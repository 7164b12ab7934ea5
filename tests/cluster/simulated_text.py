"""What the simulated target writes, one token at a time: a pure function of (seed, all tokens before it)."""

from __future__ import annotations

import random
import zlib

import numpy as np

from cluster.requests import GenerationRequest
from dflash_core.contracts import SamplingParams

VOCAB_SIZE = 97


def next_token(seed: int, history: list[int]) -> int:
    return (
        zlib.crc32(np.asarray([seed & 0x7FFFFFFF, len(history), *history[-6:]], dtype=np.int64).tobytes()) % VOCAB_SIZE
    )


def decode_plainly(request: GenerationRequest) -> list[int]:
    """The oracle: one token at a time. Returns the tokens beyond those that the request brings."""
    tokens = request.token_ids.tolist()
    begin = len(tokens)
    while len(tokens) - request.num_prompt_tokens < request.max_tokens:
        tokens.append(next_token(request.sampling.seed, tokens))
        if tokens[-1] in request.stop_token_ids:
            break
    return tokens[begin:]


def make_request(rng: random.Random, sequence_id: str, **changes: object) -> GenerationRequest:
    num_prompt_tokens = rng.randint(1, 60)
    values: dict[str, object] = {
        "sequence_id": sequence_id,
        "token_ids": np.asarray([rng.randrange(VOCAB_SIZE) for _ in range(num_prompt_tokens)], np.int32),
        "num_prompt_tokens": num_prompt_tokens,
        "max_tokens": rng.randint(1, 60),
        "sampling": SamplingParams(seed=rng.randrange(2**64)),
        "stop_token_ids": rng.choice([(), (3,), (5, 17, 40)]),
        "tree_budget": rng.choice([None, None, 0, 1, 5, 30]),
    }
    values.update(changes)
    return GenerationRequest(**values)  # type: ignore[arg-type]
