"""Who may speak between replicas: the cluster's secret and mutual TLS, on real servers and with real, tiny models."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme
from pydantic import SecretStr

from cluster.transports.authentication import OPEN, DataPlaneSecurity, SignedChannel, TlsFiles, token_of
from cluster.transports.grpc_options import open_channel, start_server
from dflash_core.errors import InvalidSettings
from protos import drafter_pb2, router_pb2, router_pb2_grpc
from tests.cluster.serving import check_outputs, make_cluster, tiny_request
from tests.tiny import make_tiny_pair

SECRET = DataPlaneSecurity(SecretStr("the secret of this cluster"))
OTHER_SECRET = DataPlaneSecurity(SecretStr("the secret of another one"))
NAME = "replicas.dflash"


class _Router(router_pb2_grpc.RouterServicer):
    async def Status(self, request: Any, context: Any) -> router_pb2.RouterStatus:  # noqa: N802
        return router_pb2.RouterStatus(num_targets=7)

    async def Lead(self, request_iterator: Any, context: Any) -> None:  # noqa: N802
        async for _ in request_iterator:
            await context.write(router_pb2.LeadMessage())


async def _codes(server: DataPlaneSecurity, client: DataPlaneSecurity) -> set[grpc.StatusCode]:
    """What a unary call and a stream end with."""

    def register(to: grpc.aio.Server) -> None:
        router_pb2_grpc.add_RouterServicer_to_server(_Router(), to)

    running = await start_server(register, security=server)
    try:
        async with open_channel(running.address, client) as channel:
            stub = router_pb2_grpc.RouterStub(channel)
            call: Any = stub.Status(router_pb2.RouterStatusRequest(), timeout=30)
            stream: Any = stub.Lead(iter([router_pb2.TargetMessage()]), timeout=30)
            with suppress(grpc.aio.AioRpcError):
                async for _ in stream:
                    pass
            return {await call.code(), await stream.code()}
    finally:
        await running.stop()


async def test_the_secret_lets_in() -> None:
    assert await _codes(SECRET, SECRET) == {grpc.StatusCode.OK}
    assert await _codes(OPEN, OPEN) == {grpc.StatusCode.OK}


@pytest.mark.parametrize("client", [OPEN, OTHER_SECRET, DataPlaneSecurity(SecretStr("the secret of this cluste"))])
async def test_whoever_has_not_the_secret_is_refused(client: DataPlaneSecurity) -> None:
    assert await _codes(SECRET, client) == {grpc.StatusCode.UNAUTHENTICATED}


async def test_every_method_of_every_service_wants_the_secret(tmp_path: Path) -> None:
    pair = make_tiny_pair(tmp_path, num_layers=2, target_layer_ids=(0, 1))
    async with make_cluster(pair, security=SECRET) as cluster:
        for descriptor, host in ((router_pb2, cluster.routers[0]), (drafter_pb2, cluster.drafters[0])):
            (service,) = descriptor.DESCRIPTOR.services_by_name.values()
            async with grpc.aio.insecure_channel(host.address) as channel:
                for method in service.methods:
                    call: Any = channel.stream_stream(f"/{service.full_name}/{method.name}")(iter([b""]))
                    assert await call.code() is grpc.StatusCode.UNAUTHENTICATED, method.full_name
        request = tiny_request(random.Random(3), "sound", pair.settings.vocab_size, max_tokens=8)
        cluster.pool.submit(request, cluster.client)
        await check_outputs(cluster.client, {"sound": await _tokens_of(cluster, request)})
        await cluster.check_nothing_left()


async def _tokens_of(cluster: Any, request: Any) -> list[int]:
    await cluster.client.wait(request.sequence_id)
    assert len(cluster.client.tokens[request.sequence_id]) == request.max_tokens
    tokens: list[int] = cluster.client.tokens[request.sequence_id]
    return tokens


def _files(folder: Path, authority: trustme.CA, *names: str) -> Callable[[str | None], DataPlaneSecurity]:
    folder.mkdir()
    certificate = authority.issue_cert(*names)
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    (folder / "key.pem").write_bytes(certificate.private_key_pem.bytes())
    (folder / "ca.pem").write_bytes(authority.cert_pem.bytes())

    def security(server_name: str | None) -> DataPlaneSecurity:
        tls = TlsFiles(folder / "cert.pem", folder / "key.pem", folder / "ca.pem", server_name)
        return DataPlaneSecurity(SECRET.secret, tls)

    return security


async def test_mutual_tls(tmp_path: Path) -> None:
    ours = trustme.CA()
    by_name = _files(tmp_path / "name", ours, NAME)
    by_address = _files(tmp_path / "address", ours, "127.0.0.1")
    foreign = _files(tmp_path / "foreign", trustme.CA(), NAME)
    assert await _codes(by_name(NAME), by_name(NAME)) == {grpc.StatusCode.OK}
    assert await _codes(by_address(None), by_address(None)) == {grpc.StatusCode.OK}
    refused = {grpc.StatusCode.UNAVAILABLE}
    assert await _codes(by_name(NAME), by_name(None)) == refused, "the address is not in the certificate"
    assert await _codes(by_name(NAME), foreign(NAME)) == refused, "signed by somebody else"
    assert await _codes(by_name(NAME), SECRET) == refused, "no certificate"
    no_secret = DataPlaneSecurity(None, by_name(NAME).tls)
    assert await _codes(by_name(NAME), no_secret) == {grpc.StatusCode.UNAUTHENTICATED}


def test_a_missing_tls_file_is_named(tmp_path: Path) -> None:
    missing = TlsFiles(tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem")
    with pytest.raises(InvalidSettings, match=r"ca\.pem: No such file"):
        missing.channel_credentials()
    with pytest.raises(InvalidSettings, match=r"key\.pem: No such file"):
        missing.server_credentials()


async def test_no_repr_shows_the_secret() -> None:
    assert SECRET.secret is not None
    value = SECRET.secret.get_secret_value()
    async with open_channel("127.0.0.1:1", SECRET) as channel:
        assert isinstance(channel, SignedChannel)
        for shown in (SECRET, channel, OTHER_SECRET):
            assert value not in repr(shown) + str(shown)


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("Basic abc", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("", None),
        (None, None),
        (b"Bearer abc", None),
    ],
)
def test_what_a_header_holds(header: Any, token: str | None) -> None:
    assert token_of(header) == token
