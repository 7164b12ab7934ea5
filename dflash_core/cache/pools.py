"""The tensors behind block tables: paged keys and values, the staging buffer of tree rows, paged context features.

A slot is a token's place in the pages: `block · kv_block_size + offset`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Slots = npt.NDArray[np.int64]


def slots_of(block_table: Sequence[int], start: int, end: int, kv_block_size: int) -> Slots:
    """`slot_mapping` of the positions start … end - 1."""
    positions = np.arange(start, end)
    blocks = np.asarray(block_table, np.int64)[positions // kv_block_size]
    slots: Slots = blocks * kv_block_size + positions % kv_block_size
    return slots


@dataclass(frozen=True, slots=True)
class KvShape:
    """What one token's keys and values look like in one layer."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * self.dtype.itemsize


class KvPool:
    """Pages, written for committed tokens only, and the staging buffer, where tree rows wait for the walk."""

    def __init__(
        self, shape: KvShape, num_blocks: int, kv_block_size: int, max_tree_rows: int, device: torch.device
    ) -> None:
        token = (shape.num_kv_heads, shape.head_dim)
        layers = shape.num_layers
        # Zeros, not empty: attention reads padding keys, whose weight is 0, and 0 · NaN would be NaN.
        self.pages = torch.zeros(layers, 2, num_blocks, kv_block_size, *token, dtype=shape.dtype, device=device)
        self.staging = torch.zeros(layers, 2, max_tree_rows, *token, dtype=shape.dtype, device=device)
        self.slots = self.pages.view(layers, 2, num_blocks * kv_block_size, *token)
        self._layer_pages = self.pages.unbind(0)
        self._layer_slots = [tuple(layer.unbind(0)) for layer in self.slots.unbind(0)]
        self._layer_staging = [tuple(layer.unbind(0)) for layer in self.staging.unbind(0)]

    def layer(self, layer_idx: int) -> Tensor:
        """`[2, num_blocks, kv_block_size, num_kv_heads, head_dim]`."""
        return self._layer_pages[layer_idx]

    def write(self, layer_idx: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Puts rows `[num_rows, num_kv_heads, head_dim]` of one layer into pages, at `slots [num_rows]` (int64)."""
        keys, values = self._layer_slots[layer_idx]
        keys.index_copy_(0, slots, key)
        values.index_copy_(0, slots, value)

    def stage(self, layer_idx: int, key: Tensor, value: Tensor) -> None:
        """Keeps the round's tree rows `[num_tree_rows, num_kv_heads, head_dim]` of one layer."""
        keys, values = self._layer_staging[layer_idx]
        keys[: len(key)] = key
        values[: len(value)] = value

    def commit(self, tree_rows: Tensor, slots: Tensor) -> None:
        """Moves staged rows `tree_rows [n]` of all layers to `slots [n]` (both int64)."""
        self.slots.index_copy_(2, slots, self.staging.index_select(2, tree_rows))


class FeaturePool:
    """Context features of committed tokens, paged like their keys and values."""

    def __init__(
        self, num_blocks: int, kv_block_size: int, hidden_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.slots = torch.zeros(num_blocks * kv_block_size, hidden_size, dtype=dtype, device=device)

    def write(self, slots: Tensor, features: Tensor) -> None:
        """Stores `features [n, hidden_size]` at `slots [n]` (int64)."""
        self.slots.index_copy_(0, slots, features)

    def read(self, slots: Tensor) -> Tensor:
        """A copy `[n, hidden_size]` of what stands at `slots [n]` (int64)."""
        return self.slots.index_select(0, slots)
