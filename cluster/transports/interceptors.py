"""What every call to a server of ours passes before a service sees it."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from pydantic import SecretStr

from cluster.transports.authentication import AUTHORIZATION, digest, token_of
from dflash_core.errors import ProtocolError

logger = logging.getLogger(__name__)

if TYPE_CHECKING:  # where alone these types are generic
    Handler = grpc.RpcMethodHandler[Any, Any]
    Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]


class SecretInterceptor(grpc.aio.ServerInterceptor):
    """Refuses every call that does not carry the secret with UNAUTHENTICATED, before any message of it is read."""

    def __init__(self, secret: SecretStr) -> None:
        self._digest = digest(secret.get_secret_value())

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        metadata = dict(handler_call_details.invocation_metadata or ())
        presented = token_of(metadata.get(AUTHORIZATION)) or ""
        if hmac.compare_digest(digest(presented), self._digest):
            return await continuation(handler_call_details)
        return grpc.stream_stream_rpc_method_handler(_refuse)


async def _refuse(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    logger.warning("a call from %s was refused: it has not the cluster's secret", context.peer())
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the call has not the cluster's secret")


class DecodeInterceptor(grpc.aio.ServerInterceptor):
    """Bytes that are no message are an INVALID_ARGUMENT, where gRPC itself would call them a fault of the server.

    Of a stream, the service gets a `ProtocolError` from its iterator, and answers as for any other.
    """

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # no such method
        assert handler.request_streaming == handler.response_streaming, "our services have no other kinds of methods"
        if handler.request_deserializer is None:
            return handler  # it takes bytes
        decode, method = _named(handler.request_deserializer), handler_call_details.method
        stream: Any = handler.stream_stream  # typed as for servers with threads
        unary: Any = handler.unary_unary
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(stream, decode, handler.response_serializer)

        async def answer(body: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                request = decode(body)
            except ProtocolError as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{method}: {error.message}")
            return await unary(request, context)

        return grpc.unary_unary_rpc_method_handler(answer, None, handler.response_serializer)


def _named(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def checked(body: bytes) -> Any:
        try:
            return decode(body)
        except DecodeError as error:
            raise ProtocolError(f"{len(body)} bytes are no message: {error}") from None

    return checked
