"""The public HTTP and gRPC APIs on sockets, over a whole cluster of tiny models in this process: no Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import uvicorn
from pydantic import SecretStr
from tokenizers import Tokenizer

from cluster.status import grpc_status
from deployments.api_keys import ApiKeySource, KeyRing
from deployments.border_settings import LimitSettings
from deployments.generation import GenerationService
from deployments.grpc_api import add_public_services
from deployments.grpc_methods import GrpcMethods
from deployments.http_api import build_http_app
from dflash_core.errors import DFlashError
from dflash_core.runners.settings import TargetSettings
from tests.cluster.serving import Cluster, make_cluster
from tests.tiny import TinyPair

KEY = "a-key-for-the-tests"
SETTINGS = TargetSettings(
    device="cpu", dtype="float32", num_blocks=128, max_rows=128, max_tree_rows=64, max_model_len=64
)
LIMITS = LimitSettings(max_outputs_per_request=4, max_body_mib=0.25)


class _Methods(GrpcMethods):
    def __init__(self, service: GenerationService, keys: KeyRing) -> None:
        self._service, self._keys, self._drafter_model = service, keys, "tiny-drafter"


async def _abort(context: Any, error: DFlashError) -> None:
    assert context.code() is grpc_status(error), "the method has not set the status"
    await context.abort(context.code(), context.details())


class _AsServeDoes:
    """Calls the methods and answers with the status that they set."""

    def __init__(self, methods: GrpcMethods) -> None:
        self._methods = methods

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._methods, name)

        async def unary(body: bytes, context: Any) -> bytes:
            try:
                return (await method(body, context)).SerializeToString()
            except DFlashError as error:
                await _abort(context, error)
                raise

        async def stream(body: bytes, context: Any) -> AsyncIterator[bytes]:
            try:
                async for message in method(body, context):
                    yield message.SerializeToString()
            except DFlashError as error:
                await _abort(context, error)

        return stream if name in ("Generate", "Watch") else unary


@dataclass
class PublicApi:
    cluster: Cluster
    service: GenerationService
    keys: KeyRing
    url: str
    grpc_target: str

    async def check_idle(self) -> None:
        """Nobody's request has left anything."""
        await self.cluster.check_nothing_left()
        router = self.cluster.routers[0].router
        assert self.service.num_open_outputs == router.num_waiting == router.num_running == 0
        assert router.num_targets == router.num_drafters == 1


@asynccontextmanager
async def make_public_api(pair: TinyPair) -> AsyncIterator[PublicApi]:
    async with make_cluster(pair, target_settings=SETTINGS) as cluster:
        tokenizer = Tokenizer.from_file(str(pair.target / "tokenizer.json"))
        service = GenerationService(cluster.pool, tokenizer, "tiny", LIMITS)
        keys = KeyRing(ApiKeySource(text=SecretStr(f"tests: {KEY}")))
        app = build_http_app(service, "tiny-drafter", keys)
        http = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="error"))
        serving = asyncio.create_task(http.serve())
        rpc = grpc.aio.server()
        add_public_services(_AsServeDoes(_Methods(service, keys)), rpc)
        rpc_port = rpc.add_insecure_port("127.0.0.1:0")
        await rpc.start()
        while not http.started:
            assert not serving.done(), "the HTTP server has ended"
            await asyncio.sleep(0.01)
        port = http.servers[0].sockets[0].getsockname()[1]
        try:
            yield PublicApi(cluster, service, keys, f"http://127.0.0.1:{port}", f"127.0.0.1:{rpc_port}")
        finally:
            http.should_exit = True
            await serving
            await rpc.stop(0)
