"""Our attention as an attention implementation of `transformers`: `attn_implementation="paged_tree"`.

Arguments that a model's forward does not know pass down to its attention function: so an `AttentionStep` travels as the
keyword argument `paged_step`, and no mask is built (transformers makes masks only for implementations that register
a mask function).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn
from transformers import AttentionInterface

from dflash_core.attention.backend import AttentionBackend
from dflash_core.attention.batch import RaggedBatch
from dflash_core.attention.ragged import ragged_attention
from dflash_core.cache.pools import KvPool
from dflash_core.errors import UnsupportedModel

PAGED_TREE = "paged_tree"  # a name with "flash" in it would make transformers look for a flash-attention kernel

# What models pass along that says nothing which the batch's own metadata does not say.
_IGNORED_ARGUMENTS = frozenset(
    {"position_ids", "use_cache", "cache_position", "output_attentions", "output_router_logits"}
)


class AttentionStep(Protocol):
    """One forward, as each of its attention layers sees it."""

    def attend(
        self,
        layer_idx: int,
        query: Tensor,  # [num_rows, num_heads, head_dim]
        key: Tensor,  # [num_rows, num_kv_heads, head_dim]
        value: Tensor,
        *,
        scale: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Attention of the packed rows, `[num_rows, num_heads, head_dim]`; then keeps their keys and values."""
        ...


@dataclass(frozen=True, slots=True)
class PagedStep:
    """A step of `HostPass`: its rows, and where their keys and values go. Prefill rows come first, tree rows after."""

    batch: RaggedBatch
    pool: KvPool
    num_prefill_rows: int
    prefill_slots: Tensor  # [num_prefill_rows] int64

    def attend(
        self,
        layer_idx: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        sliding_window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """Implements `AttentionStep`: prefill rows go to pages at once, tree rows to the staging buffer."""
        output = ragged_attention(
            query,
            key,
            value,
            self.pool.layer(layer_idx),
            self.batch,
            scale=scale,
            sliding_window=sliding_window,
            softcap=softcap,
            backend=AttentionBackend.TORCH,
        )
        split = self.num_prefill_rows
        if split == 0:
            self.pool.stage(layer_idx, key, value)
        elif split == len(key):
            self.pool.write(layer_idx, self.prefill_slots, key, value)
        else:
            self.pool.write(layer_idx, self.prefill_slots, key[:split], value[:split])
            self.pool.stage(layer_idx, key[split:], value[split:])
        return output


def register_paged_tree() -> None:
    """Makes `paged_tree` known to transformers; calling it again does nothing."""
    AttentionInterface.register(PAGED_TREE, paged_tree_attention)


def paged_tree_attention(
    module: nn.Module,
    query: Tensor,  # [1, num_heads, num_rows, head_dim]
    key: Tensor,  # [1, num_kv_heads, num_rows, head_dim]
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    paged_step: AttentionStep,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """What a model's attention layer calls. Returns `[1, num_rows, num_heads, head_dim]` and no weights.

    Raises `UnsupportedModel` for an argument that would change the result and is not implemented.
    """
    refuse_mask(module, attention_mask)
    refuse_unknown_arguments(others)
    if dropout:
        raise UnsupportedModel(f"attention dropout {dropout}: the model is in training mode")
    layer_idx = module.layer_idx
    assert isinstance(layer_idx, int)
    output = paged_step.attend(
        layer_idx,
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window=sliding_window,
        softcap=softcap,
    )
    return output.unsqueeze(0), None


def refuse_mask(module: nn.Module, attention_mask: Tensor | None) -> None:
    """Raises `UnsupportedModel` for a mask, which only a model that makes its own can pass to our attention."""
    if attention_mask is not None:
        raise UnsupportedModel(f"{type(module).__name__} has a mask of its own, which a draft tree would contradict")


def refuse_unknown_arguments(others: dict[str, object]) -> None:
    """Raises `UnsupportedModel` that names the arguments which are set and not implemented."""
    unknown = [
        name
        for name, given in others.items()
        if given is not None and name not in _IGNORED_ARGUMENTS and not (name == "is_causal" and given is True)
    ]
    if unknown:
        raise UnsupportedModel(
            f"the model passes {', '.join(sorted(unknown))} to its attention, which this server does not implement"
        )
