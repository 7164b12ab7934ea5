"""A drafter that answers nonsense: the requests that it should draft for get the tokens of plain decoding."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from cluster.transports.grpc_options import start_server
from cluster.wire.drafts import drafter_info_to_pb
from dflash_core.runners.target import TargetRunner
from protos import common_pb2, drafter_pb2
from tests.cluster.serving import TARGET_SETTINGS, decode_again, decode_plainly, make_cluster, tiny_request
from tests.tiny import make_tiny_pair
from tests.waiting import until

NUM_KINDS = 9  # of nonsense


class HostileDrafter:
    """Says that it is one of ours, and answers each batch with one more kind of nonsense about the right sequences."""

    def __init__(self, info: bytes, vocab_size: int, seed: int) -> None:
        self._info = info
        self._vocab_size = vocab_size
        self._rng = np.random.default_rng(seed)
        self.num_answers = 0

    def register(self, server: grpc.aio.Server) -> None:
        handlers = {
            "Info": grpc.unary_unary_rpc_method_handler(self._info_of),
            "Drafts": grpc.stream_stream_rpc_method_handler(self._drafts),
            "AppendContext": grpc.stream_stream_rpc_method_handler(self._append),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("dflash.internal.v1.Drafter", handlers),))

    async def _info_of(self, body: bytes, context: Any) -> bytes:
        return self._info

    async def _append(self, bodies: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for _ in bodies:
            yield b""

    async def _drafts(self, bodies: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for body in bodies:
            request = drafter_pb2.DraftRequest.FromString(body)
            self.num_answers += bool(request.blocks.root_tokens)
            yield self._answer(request)

    def _answer(self, request: drafter_pb2.DraftRequest) -> bytes:
        blocks, rng = request.blocks, self._rng
        number = len(blocks.root_tokens)
        depth, width = int(rng.integers(1, 5)), int(rng.integers(1, 5))
        token_ids = rng.integers(0, self._vocab_size, (number, depth, width)).astype("<i4")
        scores = np.sort(-rng.random((number, depth, width)))[..., ::-1].astype("<f4")
        drafts = drafter_pb2.Drafts(
            keys=blocks.keys, context_lens=blocks.context_lens, depths=[depth] * number, num_candidates=[width] * number
        )
        match self.num_answers % NUM_KINDS:
            case 0:
                token_ids[...] = self._vocab_size
            case 1:
                token_ids[...] = -1
            case 2:
                scores[...] = np.nan
            case 3:
                scores[...] = np.inf
            case 4:
                token_ids[...] = token_ids[..., :1]  # the same candidate again and again
            case 5:
                scores[...] = -np.inf
            case 6:
                drafts.depths[:] = [4_000_000_000] * number
            case 7:
                drafts.missing_from.update(dict.fromkeys(range(number), 4000000000))
            case _:
                drafts.keys.CopyFrom(common_pb2.SequenceKeys(sequence_ids=["x"] * number, attempts=[1] * number))
        drafts.token_ids, drafts.scores = token_ids.tobytes(), scores.tobytes()
        return drafter_pb2.DraftResult(batch_id=request.batch_id, drafts=drafts).SerializeToString()


@pytest.mark.parametrize("seed", range(2))
async def test_nonsense_costs_no_token(tmp_path: Path, seed: int) -> None:
    pair = make_tiny_pair(tmp_path, num_layers=2, target_layer_ids=(0, 1))
    rng = random.Random(seed)
    requests = [
        tiny_request(rng, f"r{number}", pair.settings.vocab_size, max_tokens=60, tree_budget=8) for number in range(6)
    ]
    expected = await decode_plainly(TargetRunner.load(str(pair.target), None, TARGET_SETTINGS), requests)
    async with make_cluster(pair) as cluster:
        info = drafter_info_to_pb(cluster.drafters[0].runner.info).SerializeToString()
        hostile = HostileDrafter(info, pair.settings.vocab_size, seed)
        running = await start_server(hostile.register)
        cluster.routers[0].dialer.set_endpoints([cluster.drafters[0].address, running.address])
        await until(lambda: cluster.routers[0].router.num_drafters == 2)
        try:
            while hostile.num_answers <= NUM_KINDS:
                await decode_again(cluster, requests, expected)
            assert cluster.routers[0].router.num_targets == 1
            await cluster.check_nothing_left()
        finally:
            await running.stop()
