"""Who may speak on the streams between replicas: a secret that all share, and mutual TLS where certificates are given.

The secret travels with every call as metadata, `authorization: Bearer …`. Without TLS whoever can read the network can
read it: then the network between the nodes must be closed to others (docs/security.md).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
from pydantic import SecretStr

from dflash_core.errors import InvalidSettings

AUTHORIZATION: Final = "authorization"
_SCHEME: Final = "bearer"


def bearer(secret: str) -> str:
    """The value of an `authorization` header or metadata entry."""
    return f"Bearer {secret}"


def token_of(authorization: str | bytes | None) -> str | None:
    """What follows "Bearer"; None where there is no such thing."""
    if not isinstance(authorization, str):
        return None
    scheme, _, token = authorization.strip().partition(" ")
    return token.strip() or None if scheme.lower() == _SCHEME else None


def digest(secret: str) -> bytes:
    """Of equal length for all secrets, so that comparing two in constant time tells not even their lengths."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files, the same paths on every node. Both ends must show a certificate that `ca_file` has signed."""

    cert_file: Path
    key_file: Path
    ca_file: Path
    server_name: str | None = None  # in every certificate; None: each has the address at which its node is dialled

    def channel_credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(_read(self.ca_file), _read(self.key_file), _read(self.cert_file))

    def channel_options(self) -> tuple[tuple[str, str], ...]:
        return () if self.server_name is None else (("grpc.ssl_target_name_override", self.server_name),)

    def server_credentials(self) -> grpc.ServerCredentials:
        pair = (_read(self.key_file), _read(self.cert_file))
        return grpc.ssl_server_credentials([pair], _read(self.ca_file), require_client_auth=True)


@dataclass(frozen=True, slots=True)
class DataPlaneSecurity:
    """What a replica needs to dial others and to be dialled."""

    secret: SecretStr | None = None  # None: whoever reaches a port may speak
    tls: TlsFiles | None = None


OPEN: Final = DataPlaneSecurity()


class SignedChannel(grpc.aio.Channel):
    """A channel whose calls all carry the secret. Not an interceptor of gRPC's: that puts a queue into every stream."""

    def __init__(self, channel: grpc.aio.Channel, secret: SecretStr) -> None:
        self._channel = channel
        self._metadata = ((AUTHORIZATION, bearer(secret.get_secret_value())),)

    async def __aenter__(self) -> SignedChannel:
        await self._channel.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._channel.__aexit__(*error)

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return partial(self._channel.unary_unary(*args, **kwargs), metadata=self._metadata)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return partial(self._channel.unary_stream(*args, **kwargs), metadata=self._metadata)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return partial(self._channel.stream_unary(*args, **kwargs), metadata=self._metadata)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return partial(self._channel.stream_stream(*args, **kwargs), metadata=self._metadata)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidSettings(f"TLS file {path}: {error.strerror}") from None
