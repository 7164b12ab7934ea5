"""How much one message may hold: far above what this project sends, far below what would hurt whoever reads it."""

from __future__ import annotations

import re
from typing import Final

from dflash_core.errors import ProtocolError

MAX_SEQUENCES: Final = 1 << 16  # in a column, or in a list with an entry per sequence
MAX_TOKENS: Final = 1 << 22  # of one sequence
MAX_STOP_TOKENS: Final = 1 << 12
MAX_FEATURE_BYTES: Final = 4 << 20  # of all chunks of a message; a sound target sends 1 MiB, or one token
MAX_CHUNKS: Final = 1 << 14
MAX_TEXT_CHARS: Final = 1 << 12  # of names, fingerprints, reasons
LARGEST_SIZE: Final = 2**31 - 1  # of a model's dimensions: ids and positions are int32 everywhere

# A host that is no IP address has a dot, or gRPC would take it for a scheme: "unix:1" is a file.
_ADDRESS: Final = re.compile(r"(localhost|[\w-]+(\.[\w-]+)+|\[?[0-9A-Fa-f.]*:[0-9A-Fa-f:.]+\]?):\d{1,5}", re.ASCII)


def check_at_most(what: str, number: int, limit: int) -> None:
    """Raises `ProtocolError` for more."""
    if number > limit:
        raise ProtocolError(f"a message may hold {limit} {what}, got {number}")


def check_text(what: str, text: str) -> str:
    """Raises `ProtocolError` for one that is too long."""
    check_at_most(f"characters of {what}", len(text), MAX_TEXT_CHARS)
    return text


def check_address(address: str) -> str:
    """Raises `ProtocolError` unless it is host:port, or empty, which is nowhere."""
    if address and not (len(address) <= MAX_TEXT_CHARS and _ADDRESS.fullmatch(address)):
        raise ProtocolError(f"an address is host:port, got {address[:80]!r}")
    return address
