"""The named errors of the product. One table maps their codes to gRPC and HTTP (`cluster/status.py`)."""

from __future__ import annotations

from enum import Enum


class ErrorCode(Enum):
    """What a caller can do about an error; the names are gRPC's."""

    INVALID_ARGUMENT = "invalid_argument"
    UNAUTHENTICATED = "unauthenticated"
    NOT_FOUND = "not_found"
    FAILED_PRECONDITION = "failed_precondition"
    RESOURCE_EXHAUSTED = "resource_exhausted"
    UNAVAILABLE = "unavailable"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELLED = "cancelled"
    UNIMPLEMENTED = "unimplemented"
    INTERNAL = "internal"


class DFlashError(Exception):
    """Base of every error a user can meet. `param` names the request field at fault, where there is one."""

    code = ErrorCode.INTERNAL

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(DFlashError):
    """A field of a request is out of its range; the message holds the value and the range."""

    code = ErrorCode.INVALID_ARGUMENT


class PromptTooLong(InvalidRequest):
    """Prompt and wanted tokens do not fit the target's context."""


class RequestTooLarge(InvalidRequest):
    """A request has more bytes than the server takes."""


class Unauthenticated(DFlashError):
    """No valid API key came with a request, or not the cluster's secret with a call between replicas."""

    code = ErrorCode.UNAUTHENTICATED


class UnknownModel(DFlashError):
    """The request names a model that is not served here."""

    code = ErrorCode.NOT_FOUND


class CheckpointNotFound(DFlashError):
    """A checkpoint's folder or one of its files is missing."""

    code = ErrorCode.NOT_FOUND


class UnsupportedModel(DFlashError):
    """The checkpoint is sound but cannot be served; the message says why."""

    code = ErrorCode.FAILED_PRECONDITION


class CheckpointMismatch(DFlashError):
    """Drafter and target do not belong together, or a checkpoint's tensors do not match its config."""

    code = ErrorCode.FAILED_PRECONDITION


class InvalidSettings(DFlashError):
    """A setting of the deployment has a wrong name or value."""

    code = ErrorCode.INVALID_ARGUMENT


class Overloaded(DFlashError):
    """A queue is full. `retry_after_s` is a hint for the client."""

    code = ErrorCode.RESOURCE_EXHAUSTED

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(DFlashError):
    """No target (or no router) can take the request at present."""

    code = ErrorCode.UNAVAILABLE


class ModelLost(Unavailable):
    """A process cannot run its model any more: only a new process can."""


class DeviceLost(ModelLost):
    """A process's GPU answers every call with an error from now on."""


class RanksLost(ModelLost):
    """A rank of a tensor-parallel model has ended, or did not answer in time: the others cannot go on without it."""


class DeadlineExceeded(DFlashError):
    """The request's own `timeout_ms` ran out."""

    code = ErrorCode.DEADLINE_EXCEEDED


class ProtocolError(DFlashError):
    """An internal message broke the contract of ARCHITECTURE section 8."""

    code = ErrorCode.INVALID_ARGUMENT
