"""What a deployment may set about a runner. Imports no torch, so that a settings file is checked without it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

DeviceName = Literal["auto", "cpu", "cuda"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
AttentionName = Literal["auto", "torch", "triton"]


class TargetSettings(BaseModel):
    """One target. The pool's size is `num_blocks`, or else what fits `kv_cache_bytes`, or else `memory_fraction`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: DeviceName = Field("auto", description="auto: cuda where there is a GPU")
    dtype: DtypeName = Field("auto", description="auto: bfloat16 on cuda, float32 on cpu")
    attention: AttentionName = Field("auto", description="what computes attention; auto: triton on cuda, torch on cpu")
    tensor_parallel: int = Field(1, ge=1, description="ranks over which the model is split, a GPU or a process each")
    collective_timeout_s: float = Field(
        30.0, gt=0, description="how long a rank waits for another within a pass before it gives the model up"
    )
    kv_block_size: int = Field(16, ge=1, description="tokens in a KV block")
    memory_fraction: float = Field(
        0.8, gt=0, le=1, description="on cuda: share of what is free beside the weights for KV, features and staging"
    )
    num_blocks: int | None = Field(None, ge=1, description="KV blocks, instead of memory_fraction")
    kv_cache_bytes: int | None = Field(
        None, ge=1, description="memory for KV and features, instead of memory_fraction; unset on cpu: 256 MiB"
    )
    prefix_caching: bool = Field(True, description="compute the first tokens of sequences that share them only once")
    max_rows: int = Field(1024, ge=1, description="most rows of a round, prefill chunks and trees together")
    max_tree_rows: int = Field(512, ge=1, description="most tree rows of a round")
    compile: bool = Field(True, description="fuse the model's operators with torch.compile; where attention is triton")
    cuda_graphs: bool = Field(
        True, description="replay rounds of padded sizes as CUDA graphs; on cuda, not with tensor_parallel beyond 1"
    )
    max_graph_rows: int = Field(512, ge=1, description="rows of the largest round that is a CUDA graph")
    max_model_len: int | None = Field(None, ge=2, description="tokens of prompt and output; unset: what the model has")
    num_threads: int = Field(1, ge=1, description="torch threads of the process")

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        _refuse_two_sizes(self.num_blocks, self.kv_cache_bytes)
        return self

    @model_validator(mode="after")
    def _tree_rows_are_rows(self) -> Self:
        if self.max_tree_rows > self.max_rows:
            raise ValueError(f"max_tree_rows {self.max_tree_rows} exceeds max_rows {self.max_rows}")
        return self


class DrafterSettings(BaseModel):
    """One drafter. The size of its context pool is as a target's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: DeviceName = Field("auto", description="auto: cuda where there is a GPU")
    dtype: DtypeName = Field("auto", description="auto: bfloat16 on cuda, float32 on cpu")
    attention: AttentionName = Field("auto", description="what computes attention; auto: triton on cuda, torch on cpu")
    kv_block_size: int = Field(16, ge=1, description="tokens in a block of context")
    memory_fraction: float = Field(
        0.5, gt=0, le=1, description="on cuda: share of what is free beside the weights for keys and values"
    )
    num_blocks: int | None = Field(None, ge=1, description="context blocks, instead of memory_fraction")
    kv_cache_bytes: int | None = Field(
        None, ge=1, description="memory for keys and values, instead of memory_fraction; unset on cpu: 64 MiB"
    )
    num_candidates: int = Field(
        64, ge=1, description="likeliest tokens told per depth; at most the vocabulary, on cuda 512 of it"
    )
    shared_noise: bool = Field(
        True, description="rank candidates with the noise that the target will add, where the router asks for it"
    )
    sharpness: float = Field(1.0, gt=0, description="divides the scores of sampled candidates")
    compile: bool = Field(True, description="fuse the model's operators with torch.compile; where attention is triton")
    cuda_graphs: bool = Field(True, description="replay steps of padded sizes as CUDA graphs; on cuda")
    max_batch_blocks: int = Field(64, ge=1, description="most draft blocks in one forward; more go in several")
    num_threads: int = Field(1, ge=1, description="torch threads of the process")

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        _refuse_two_sizes(self.num_blocks, self.kv_cache_bytes)
        return self


def _refuse_two_sizes(num_blocks: int | None, kv_cache_bytes: int | None) -> None:
    if num_blocks is not None and kv_cache_bytes is not None:
        raise ValueError(f"num_blocks {num_blocks} and kv_cache_bytes {kv_cache_bytes} both set the cache's size")
