"""The one table from the product's errors to gRPC and HTTP, and back from gRPC."""

from __future__ import annotations

from typing import Final

import grpc

from dflash_core.errors import (
    CheckpointMismatch,
    DeadlineExceeded,
    DFlashError,
    ErrorCode,
    InvalidRequest,
    Overloaded,
    ProtocolError,
    RequestTooLarge,
    Unauthenticated,
    Unavailable,
    UnknownModel,
)

_TABLE: Final[dict[ErrorCode, tuple[grpc.StatusCode, int]]] = {
    ErrorCode.INVALID_ARGUMENT: (grpc.StatusCode.INVALID_ARGUMENT, 400),
    ErrorCode.UNAUTHENTICATED: (grpc.StatusCode.UNAUTHENTICATED, 401),
    ErrorCode.NOT_FOUND: (grpc.StatusCode.NOT_FOUND, 404),
    ErrorCode.FAILED_PRECONDITION: (grpc.StatusCode.FAILED_PRECONDITION, 409),
    ErrorCode.RESOURCE_EXHAUSTED: (grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
    ErrorCode.UNAVAILABLE: (grpc.StatusCode.UNAVAILABLE, 503),
    ErrorCode.DEADLINE_EXCEEDED: (grpc.StatusCode.DEADLINE_EXCEEDED, 504),
    ErrorCode.CANCELLED: (grpc.StatusCode.CANCELLED, 499),
    ErrorCode.UNIMPLEMENTED: (grpc.StatusCode.UNIMPLEMENTED, 501),
    ErrorCode.INTERNAL: (grpc.StatusCode.INTERNAL, 500),
}

# What an error that came over the wire is raised as. The finer names of one code do not travel: a client acts on codes.
_ERRORS: Final[dict[ErrorCode, type[DFlashError]]] = {
    ErrorCode.INVALID_ARGUMENT: InvalidRequest,
    ErrorCode.UNAUTHENTICATED: Unauthenticated,
    ErrorCode.NOT_FOUND: UnknownModel,
    ErrorCode.FAILED_PRECONDITION: CheckpointMismatch,
    ErrorCode.RESOURCE_EXHAUSTED: Overloaded,
    ErrorCode.UNAVAILABLE: Unavailable,
    ErrorCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}


def grpc_status(error: BaseException) -> grpc.StatusCode:
    """INTERNAL for whatever is not a `DFlashError`."""
    return _TABLE[error.code if isinstance(error, DFlashError) else ErrorCode.INTERNAL][0]


def http_status(error: BaseException) -> int:
    """500 for whatever is not a `DFlashError`."""
    if isinstance(error, RequestTooLarge):
        return 413  # for which gRPC has no code
    return _TABLE[error.code if isinstance(error, DFlashError) else ErrorCode.INTERNAL][1]


def error_of(code: str, message: str, *, param: str | None = None, retry_after_s: float = 0.0) -> DFlashError:
    """The error that travelled as an `ErrorCode` value. Raises `ProtocolError` for a code that there is not."""
    try:
        error_code = ErrorCode(code)
    except ValueError:
        raise ProtocolError(f"unknown error code {code!r} with message {message!r}") from None
    if error_code is ErrorCode.RESOURCE_EXHAUSTED:
        return Overloaded(message, retry_after_s=retry_after_s or 1.0)
    return _ERRORS.get(error_code, DFlashError)(message, param=param)


def error_of_rpc(error: grpc.RpcError, what: str) -> DFlashError:
    """The error that a peer's status stands for; what no table knows means that the peer cannot be used now."""
    return error_of_status(error.code(), error.details(), what)


def error_of_status(status: grpc.StatusCode, details: str | None, what: str) -> DFlashError:
    """The same from the two parts of a status."""
    for code, (known, _) in _TABLE.items():
        if known is status and code in _ERRORS:
            return error_of(code.value, f"{what}: {details or status.name}")
    return Unavailable(f"{what}: {status.name}: {details or ''}")
