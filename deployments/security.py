"""Where secrets come from: files and environment variables, read once by the builder and handed to the replicas.

They are `SecretStr` on their way: neither a repr, a log line nor `serve status` shows one.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from pydantic import SecretStr
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from cluster.transports.authentication import DataPlaneSecurity, TlsFiles
from deployments.api_keys import ApiKeySource, KeyRing
from deployments.border_settings import SecuritySettings
from deployments.settings import SettingsError

API_KEYS = "DFLASH_API_KEYS"
CLUSTER_SECRET = "DFLASH_CLUSTER_SECRET"
MIN_SECRET_CHARS = 16

_KV_KEY, _KV_NAMESPACE = b"cluster_secret", b"dflash"


def api_key_source(settings: SecuritySettings) -> ApiKeySource:
    """The file of the settings or what the environment holds. Raises `SettingsError` for keys that cannot be read.

    A file that is not on this machine may be on those of the gateways, which read it when they start.
    """
    text = os.environ.get(API_KEYS)
    if settings.api_key_file is not None and text:
        raise SettingsError(f"API keys come from security.api_key_file and from {API_KEYS}: give one of the two")
    # In an environment variable a key a line is awkward to write: commas do as well.
    source = ApiKeySource(settings.api_key_file, SecretStr(text.replace(",", "\n")) if text else None)
    if source.file is None or source.file.exists():
        KeyRing(source)
    return source


def data_plane_security(settings: SecuritySettings) -> DataPlaneSecurity:
    """The secret of the file or of the environment; else one of this Ray cluster's own, made when it is first asked for
    and kept by the cluster, since a redeployment must not change it. Raises `SettingsError`. Needs Ray to run."""
    return DataPlaneSecurity(_given_secret(settings) or _cluster_s_own_secret(), _tls(settings))


def check_security(settings: SecuritySettings, must_be_here: bool = False) -> None:
    """What can be said before Ray runs. With `must_be_here` a file that does not exist is an error, too: all replicas
    are to run on this machine. Raises `SettingsError`."""
    if must_be_here:
        for name in ("api_key_file", "tls_cert_file", "tls_key_file", "tls_ca_file"):
            path = getattr(settings, name)
            if path is not None and not path.is_file():
                raise SettingsError(f"security.{name}: there is no file {path}", param=f"security.{name}")
    api_key_source(settings)
    _given_secret(settings)


def _given_secret(settings: SecuritySettings) -> SecretStr | None:
    text = os.environ.get(CLUSTER_SECRET)
    file = settings.cluster_secret_file
    if file is not None and text:
        raise SettingsError(
            f"the cluster's secret comes from security.cluster_secret_file and from {CLUSTER_SECRET}: give one of them"
        )
    if file is not None:
        text, where = _read(file), str(file)
    elif text:
        where = CLUSTER_SECRET
    else:
        return None
    text = text.strip()
    if len(text) < MIN_SECRET_CHARS or not (text.isascii() and text.isprintable()) or " " in text:
        raise SettingsError(
            f"{where} must hold at least {MIN_SECRET_CHARS} printable ASCII characters without spaces, has {len(text)}"
        )
    return SecretStr(text)


def _cluster_s_own_secret() -> SecretStr:
    _internal_kv_put(_KV_KEY, secrets.token_urlsafe(32).encode(), overwrite=False, namespace=_KV_NAMESPACE)
    kept = _internal_kv_get(_KV_KEY, namespace=_KV_NAMESPACE)
    assert kept is not None, "Ray has lost the secret that was put just now"
    return SecretStr(kept.decode())


def _tls(settings: SecuritySettings) -> TlsFiles | None:
    cert_file, key_file, ca_file = settings.tls_cert_file, settings.tls_key_file, settings.tls_ca_file
    if cert_file is None or key_file is None or ca_file is None:
        return None  # the settings have refused some without the others
    return TlsFiles(cert_file, key_file, ca_file, settings.tls_server_name)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise SettingsError(f"{path}: {reason}", param="security.cluster_secret_file") from None
