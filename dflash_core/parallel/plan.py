"""How a model is split over ranks: `transformers`' own plan, two rules of ours, and what is refused before loading.

| | split |
|---|---|
| query heads, hidden units of MLPs and experts | by rank, each with the rows of its output projection: partial sums |
| KV heads | by rank; where they are fewer than ranks, each rank has the one that its query heads read |
| embedding, head | by vocabulary |
| norms, routers of experts | everywhere |
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from dflash_core.errors import UnsupportedModel

# What `make_local` knows how to run without `transformers`' hooks.
_STYLES = frozenset(
    {
        "colwise",
        "rowwise",
        "embedding_rowwise",
        "replicated_with_grad_allreduce",  # without a gradient: replicated
        "packed_colwise",
        "moe_tp_experts",
    }
)
_KV_PROJECTIONS = ("k_proj", "v_proj")


@dataclass(frozen=True, slots=True)
class KvSplit:
    """Which KV heads a rank has."""

    num_kv_heads: int  # of the model
    tp_size: int

    @property
    def is_replicated(self) -> bool:
        """Fewer KV heads than ranks: several ranks have the same."""
        return self.num_kv_heads < self.tp_size

    def head_of(self, tp_rank: int) -> int:
        """The one KV head of a rank, where they are replicated."""
        assert self.is_replicated
        return tp_rank * self.num_kv_heads // self.tp_size


@dataclass(frozen=True, slots=True)
class SplitPlan:
    overrides: dict[str, str]  # on top of the model's own plan
    kv: KvSplit


def plan_split(config: PreTrainedConfig, tp_size: int) -> SplitPlan:
    """Raises `UnsupportedModel` with every reason why the model cannot be split over `tp_size` ranks."""
    plan = _own_plan(config)
    heads: int = config.num_attention_heads
    kv = KvSplit(getattr(config, "num_key_value_heads", None) or heads, tp_size)
    if reasons := list(_reasons(config, plan, kv)):
        raise UnsupportedModel(f"{config.model_type} cannot be split over {tp_size} ranks: {'; '.join(reasons)}")
    overrides = {name: "colwise" for name in plan if _last(name) == "lm_head"} or {"lm_head": "colwise"}
    if kv.is_replicated:
        overrides |= {name: "replicate" for name in plan if _last(name) in _KV_PROJECTIONS}
    return SplitPlan(overrides, kv)


def _own_plan(config: PreTrainedConfig) -> dict[str, str]:
    with torch.device("meta"):
        skeleton: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    return dict(skeleton.tp_plan or {})


def _reasons(config: PreTrainedConfig, plan: dict[str, str], kv: KvSplit) -> Iterator[str]:
    layers = {name: style for name, style in plan.items() if _last(name) != "lm_head"}
    if not any(_last(name) == "o_proj" for name in layers):
        yield "transformers has no tensor-parallel plan for it"
        return
    if odd := sorted(f"{_last(name)} as {style}" for name, style in layers.items() if style not in _STYLES):
        yield f"its tensor-parallel plan has {', '.join(dict.fromkeys(odd))}, which is not implemented"
    tp_size, heads = kv.tp_size, config.num_attention_heads
    if heads % tp_size:
        yield f"{heads} attention heads are not divisible by {tp_size}"
    if kv.num_kv_heads % tp_size and tp_size % kv.num_kv_heads:
        yield f"of {kv.num_kv_heads} KV heads and {tp_size} ranks neither number divides the other"
    for name in ("intermediate_size", "moe_intermediate_size"):
        size = getattr(config, name, None)
        if isinstance(size, int) and size % tp_size:
            yield f"{name} {size} is not divisible by {tp_size}"
    vocab_size: int = config.vocab_size
    if shard_size(vocab_size, tp_size) * (tp_size - 1) >= vocab_size:
        yield f"a vocabulary of {vocab_size} leaves a rank without an id"


def shard_size(vocab_size: int, tp_size: int) -> int:
    """Ids of every rank but the last, which may have fewer."""
    return -(-vocab_size // tp_size)


def _last(name: str) -> str:
    return name.rpartition(".")[2]
