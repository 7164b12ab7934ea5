"""Clients' API keys: several, each with a name; read from a file that may change while the gateway runs, or given once.

    # one key a line: its name, then the key
    research: 0f9b…
    billing: 77ac…

The name is what statistics speak of. The keys themselves are kept as digests alone.
"""

from __future__ import annotations

import hmac
import logging
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from cluster.transports.authentication import digest, token_of
from deployments.settings import SettingsError
from dflash_core.errors import Unauthenticated

logger = logging.getLogger("ray.serve")

MIN_KEY_CHARS = 16
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY = re.compile(rf"[!-~]{{{MIN_KEY_CHARS},512}}")  # what fits a header: ASCII without spaces


@dataclass(frozen=True, slots=True)
class ApiKeySource:
    """Where the keys are; with neither, whoever reaches the ports may use the models."""

    file: Path | None = None  # on every node that runs a gateway
    text: SecretStr | None = None  # the same lines


def parse_keys(text: str, where: str) -> dict[str, bytes]:
    """Digests by name. Raises `SettingsError` that names the line, and never says what is in it."""
    keys: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, key = (part.strip() for part in line.partition(":"))
        if not (colon and _NAME.fullmatch(name) and _KEY.fullmatch(key)):
            raise SettingsError(
                f"{where}, line {number}: must be NAME: KEY, the name of letters, digits, '.', '_' and '-', the key of "
                f"{MIN_KEY_CHARS} to 512 printable ASCII characters without spaces"
            )
        if name in keys:
            raise SettingsError(f"{where}, line {number}: there is a key named {name!r} before it")
        if digest(key) in keys.values():
            raise SettingsError(f"{where}, line {number}: the key of {name!r} has another name before it")
        keys[name] = digest(key)
    if not keys:
        raise SettingsError(f"{where} holds no key: a server that nobody may use")
    return keys


class KeyRing:
    """Tells whose key came with a request. A file that has changed is read again with the next request."""

    def __init__(self, source: ApiKeySource) -> None:
        """Raises `SettingsError` where the keys cannot be read."""
        self._file = source.file
        self._stamp: tuple[int, int, int] | None = None
        self._keys: dict[str, bytes] | None = None
        self.num_requests: Counter[str] = Counter()  # by the key's name
        self.num_refused = 0
        if source.file is not None:
            self._stamp = _stamp(source.file)
            self._keys = _read(source.file)
        elif source.text is not None:
            self._keys = parse_keys(source.text.get_secret_value(), "the API keys given")

    @property
    def is_open(self) -> bool:
        """No key is wanted."""
        return self._keys is None

    def authenticate(self, authorization: str | bytes | None) -> str | None:
        """The name of the key in an `authorization` header; None where none is wanted. Raises `Unauthenticated`."""
        if self._keys is None:
            return None
        self._reread()
        key = token_of(authorization)
        name = self._find(digest(key or ""))
        if name is None:
            self.num_refused += 1
            raise Unauthenticated(
                "no API key came with the request: send it as 'Authorization: Bearer KEY'"
                if key is None
                else "the API key is not valid here"
            )
        self.num_requests[name] += 1
        return name

    def _find(self, presented: bytes) -> str | None:
        """Compares with every key, so that the time tells nothing of which one it is."""
        assert self._keys is not None
        found = None
        for name, expected in self._keys.items():
            if hmac.compare_digest(expected, presented):
                found = name
        return found

    def _reread(self) -> None:
        """Where the file has gone wrong the keys stay as they were: to drop them would lock everybody out or in."""
        if self._file is None or (stamp := _stamp(self._file)) == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = _read(self._file)
            logger.info("%d API keys read from %s: %s", len(self._keys), self._file, ", ".join(self._keys))
        except SettingsError as error:
            logger.error("the API keys stay as they were: %s", error)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Differs where the file was changed; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _read(path: Path) -> dict[str, bytes]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}", param="security.api_key_file") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: is not UTF-8 text", param="security.api_key_file") from None
    return parse_keys(text, str(path))
