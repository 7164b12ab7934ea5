"""Reading a request's body, no further than it may go."""

from __future__ import annotations

from starlette.requests import Request

from deployments.border_settings import LimitSettings


async def read_body(request: Request, limits: LimitSettings) -> bytes:
    """Raises `RequestTooLarge` as soon as it is known: by what the client announces, or while it sends."""
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit():
        limits.check_body(int(announced[:20]))
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        limits.check_body(len(body))
    return bytes(body)
