"""Opens every internal channel and server: their options, their authentication, and how a server finds its port.

A killed peer breaks a stream within milliseconds; a silent one is found by keepalive, which needs all of these on
both ends: a missing one leaves a frozen peer unnoticed for a minute, or cuts idle streams ("too many pings").
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import grpc
import grpc.aio

from cluster.transports.authentication import OPEN, DataPlaneSecurity, SignedChannel
from cluster.transports.interceptors import DecodeInterceptor, SecretInterceptor
from dflash_core.errors import Unavailable

MAX_MESSAGE_BYTES: Final = 64 << 20  # a round of 32K-token prompts has room
_KEEPALIVE_MS: Final = 5_000
_KEEPALIVE_TIMEOUT_MS: Final = 10_000
_CONNECT_TIMEOUT_MS: Final = 5_000

_BOTH_ENDS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
)
CHANNEL_OPTIONS: Final = (
    *_BOTH_ENDS,
    # A connection of its own per channel: features must not queue in front of drafts.
    ("grpc.use_local_subchannel_pool", 1),
    # Also how long a connection may take to come about: 20 s unless set, where a peer accepts and says nothing.
    ("grpc.min_reconnect_backoff_ms", _CONNECT_TIMEOUT_MS),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
SERVER_OPTIONS: Final = (
    *_BOTH_ENDS,
    ("grpc.so_reuseport", 0),  # else two servers share a port without a word
    ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),
)

# What reading from and writing to a stream raises once the other side is gone.
STREAM_ERRORS: Final = (grpc.RpcError, asyncio.InvalidStateError, grpc.aio.UsageError)


def open_channel(address: str, security: DataPlaneSecurity = OPEN) -> grpc.aio.Channel:
    """Raises `InvalidSettings` where a TLS file cannot be read."""
    if security.tls is None:
        channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    else:
        options = (*CHANNEL_OPTIONS, *security.tls.channel_options())
        channel = grpc.aio.secure_channel(address, security.tls.channel_credentials(), options=options)
    return channel if security.secret is None else SignedChannel(channel, security.secret)


@dataclass(frozen=True, slots=True)
class RunningServer:
    server: grpc.aio.Server
    address: str  # host:port, for others to dial

    async def stop(self, grace_s: float = 0.0) -> None:
        await self.server.stop(grace_s)


async def start_server(
    register: Callable[[grpc.aio.Server], None],
    host: str = "127.0.0.1",
    ports: Iterable[int] = (0,),
    security: DataPlaneSecurity = OPEN,
) -> RunningServer:
    """Serves on the first free port of `ports`; 0 is any.

    Raises `Unavailable` when none is free, `InvalidSettings` where a TLS file cannot be read.

    `register` adds the servicers, for example `lambda server: add_DrafterServicer_to_server(service, server)`.
    """
    interceptors: list[grpc.aio.ServerInterceptor] = [DecodeInterceptor()]
    if security.secret is not None:
        interceptors.insert(0, SecretInterceptor(security.secret))
    credentials = None if security.tls is None else security.tls.server_credentials()
    tried: list[int] = []
    for port in ports:
        server = grpc.aio.server(options=SERVER_OPTIONS, interceptors=interceptors)
        register(server)
        try:
            if credentials is None:
                bound = server.add_insecure_port(f"{host}:{port}")
            else:
                bound = server.add_secure_port(f"{host}:{port}", credentials)
        except RuntimeError:  # in use
            tried.append(port)
            continue
        await server.start()
        return RunningServer(server, f"{host}:{bound}")
    raise Unavailable(f"no free port on {host}: tried {len(tried)} from {tried[0]} to {tried[-1]}")
