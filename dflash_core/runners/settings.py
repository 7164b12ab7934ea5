"""What a deployment may set about a runner. Imports no torch, so that a settings file is checked without it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

DeviceName = Literal["auto", "cpu", "cuda"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]


class TargetSettings(BaseModel):
    """One target. The pool's size is `num_blocks`, or else what fits `kv_cache_bytes`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: DeviceName = Field("auto", description="auto: cuda where there is a GPU")
    dtype: DtypeName = Field("auto", description="auto: bfloat16 on cuda, float32 on cpu")
    kv_block_size: int = Field(16, ge=1, description="tokens in a KV block")
    num_blocks: int | None = Field(None, ge=1, description="KV blocks; unset: as many as kv_cache_bytes holds")
    kv_cache_bytes: int | None = Field(
        None, ge=1, description="memory for KV and features; unset: 256 MiB on cpu, 80 % of what is free on cuda"
    )
    max_rows: int = Field(1024, ge=1, description="most rows of a round, prefill chunks and trees together")
    max_tree_rows: int = Field(512, ge=1, description="most tree rows of a round")
    max_model_len: int | None = Field(None, ge=2, description="tokens of prompt and output; unset: what the model has")
    num_threads: int = Field(1, ge=1, description="torch threads of the process, on cpu")

    @model_validator(mode="after")
    def _tree_rows_are_rows(self) -> Self:
        if self.max_tree_rows > self.max_rows:
            raise ValueError(f"max_tree_rows {self.max_tree_rows} exceeds max_rows {self.max_rows}")
        return self
