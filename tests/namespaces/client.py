"""A gRPC client inside a namespace: `python -m tests.namespaces.client ADDRESS`, a JSON line per output.

Each prompt is decoded with drafts and without, all of them at once.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import grpc.aio

from protos import inference_pb2, inference_pb2_grpc

PROMPTS = ["def add(left, right):\n", "class Stack:\n    def push", "return self.items.pop()", "x"]
MAX_TOKENS = 120
_TIMEOUT_S = 240.0


async def main(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        for tree_budget in (16, 0):
            cases = [(number, temperature) for number in range(len(PROMPTS)) for temperature in (0.0, 1.0)]
            for output in await asyncio.gather(*(_complete(stub, *case, tree_budget) for case in cases)):
                print(json.dumps(output), flush=True)


async def _complete(stub: Any, number: int, temperature: float, tree_budget: int) -> dict[str, Any]:
    request = inference_pb2.GenerateRequest(
        text=PROMPTS[number], max_tokens=MAX_TOKENS, temperature=temperature, seed=number, tree_budget=tree_budget
    )
    began = time.monotonic()
    answer = await stub.Complete(request, timeout=_TIMEOUT_S)
    return {
        "case": [number, temperature],
        "tree_budget": tree_budget,
        "token_ids": list(answer.token_ids),
        "rounds": answer.statistics.rounds,
        "seconds": time.monotonic() - began,
    }


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
