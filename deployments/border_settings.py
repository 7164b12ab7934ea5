"""What the border lets in: how much one client may ask for, and who is let in at all."""

from __future__ import annotations

from pydantic import Field, model_validator

from deployments.pools import OptionalPath, SettingsSection
from dflash_core.errors import RequestTooLarge


class LimitSettings(SettingsSection):
    """What one client may ask for."""

    max_outputs_per_request: int = Field(64, ge=1, description="prompts times n of one request")
    max_open_outputs: int = Field(
        4096, ge=1, description="outputs that one gateway works on, waiting ones included; beyond it requests get 429"
    )
    max_tree_budget: int = Field(1024, ge=0, description="largest tree_budget a request may name")
    max_body_mib: float = Field(16.0, gt=0, le=1024, description="most of one HTTP body or public gRPC message, in MiB")

    @property
    def max_body_bytes(self) -> int:
        return int(self.max_body_mib * 2**20)

    def check_body(self, num_bytes: int) -> None:
        """Raises `RequestTooLarge`."""
        if num_bytes > self.max_body_bytes:
            raise RequestTooLarge(f"the request has {num_bytes} bytes or more, at most {self.max_body_bytes} are taken")


class SecuritySettings(SettingsSection):
    """Where secrets are; never the secrets themselves. docs/security.md says what each protects."""

    api_key_file: OptionalPath = Field(
        None, description="clients' API keys, a line NAME: KEY each, on every node with a gateway; may change meanwhile"
    )
    cluster_secret_file: OptionalPath = Field(
        None, description="what replicas show each other, where the builder runs; none: one that the cluster makes"
    )
    tls_cert_file: OptionalPath = Field(
        None, description="replicas' certificate, for mutual TLS between them; the same path on every node"
    )
    tls_key_file: OptionalPath = Field(None, description="its private key")
    tls_ca_file: OptionalPath = Field(None, description="the authority that signed every replica's certificate")
    tls_server_name: str | None = Field(
        None, min_length=1, description="a name in every certificate; none: each has its own node's address"
    )

    @model_validator(mode="after")
    def _all_of_tls(self) -> SecuritySettings:
        names = ("tls_cert_file", "tls_key_file", "tls_ca_file")
        missing = [name for name in names if getattr(self, name) is None]
        if 0 < len(missing) < len(names):
            raise ValueError(f"mutual TLS needs {', '.join(names)}; missing: {', '.join(missing)}")
        if missing and self.tls_server_name is not None:
            raise ValueError(f"tls_server_name={self.tls_server_name!r} needs {', '.join(names)}")
        return self
