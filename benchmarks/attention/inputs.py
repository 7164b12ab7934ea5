"""One size's tensors, and the arms that run on them: paged for ours, dense and made beforehand for the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.limits import Work
from benchmarks.trees import random_depths
from dflash_core.attention import RaggedBatch, RowGroup, ragged_attention
from dflash_core.attention.padding import padded_groups
from dflash_core.attention.split_kv.work_list import HeadShape, make_work_list, work_list_of
from dflash_core.trees.structure import end_rows

OURS, SDPA, FLEX = ARMS = ("ours", "sdpa", "flex")
KV_BLOCK_SIZE = 16
_MASK_ALIGNMENT = 16  # elements; SDPA copies masks whose rows are not aligned


@dataclass(frozen=True, slots=True)
class Size:
    batch: int
    context: int  # tokens in pages, of each sequence
    nodes: int  # rows of each tree, with the root


class Inputs:
    def __init__(self, size: Size, heads: HeadShape, device: torch.device) -> None:
        rng = np.random.default_rng(0)
        num_rows, blocks = size.batch * size.nodes, -(-size.context // KV_BLOCK_SIZE)
        tables = rng.permutation(size.batch * blocks).astype(np.int32).reshape(size.batch, blocks)
        depths = random_depths(rng, size.nodes)
        self.size, self.heads, self.device = size, heads, device
        self.num_visible = int(depths.sum()) + size.nodes  # pairs of in-flight row and in-flight key, of one tree
        self._groups = [RowGroup.tree(depths, end_rows(depths), size.context, table) for table in tables]
        self._batch = self.new_batch()
        self._scale = heads.head_dim**-0.5
        options: dict[str, Any] = {"dtype": heads.dtype, "device": device}
        kv = (heads.num_kv_heads, heads.head_dim)
        self._query = torch.randn(num_rows, heads.num_heads, heads.head_dim, **options)
        self._key, self._value = (torch.randn(num_rows, *kv, **options) for _ in range(2))
        self._pages = torch.randn(2, size.batch * blocks, KV_BLOCK_SIZE, *kv, **options)
        rows, ends = np.arange(size.nodes), end_rows(depths)
        visible = (rows[None] <= rows[:, None]) & (rows[:, None] < ends[None])
        self._tree_mask = torch.from_numpy(visible).to(device)  # [nodes, nodes]
        self._tables = torch.from_numpy(tables.astype(np.int64)).to(device)

    @property
    def work(self) -> Work:
        """Keys, values, queries and outputs once each; two products of `head_dim` per visible pair and head."""
        size, heads = self.size, self.heads
        keys = 2 * (size.context + size.nodes) * heads.num_kv_heads
        rows = 2 * size.nodes * heads.num_heads
        pairs = size.nodes * size.context + self.num_visible
        return Work(
            size.batch * (keys + rows) * heads.head_dim * heads.dtype.itemsize,
            size.batch * 4 * pairs * heads.num_heads * heads.head_dim,
        )

    def new_batch(self) -> RaggedBatch:
        """The metadata of a round as its planner makes them: on the host, with nothing derived from them yet."""
        return RaggedBatch.pack(self._groups, KV_BLOCK_SIZE, self.device)

    def prepare(self, batch: RaggedBatch) -> None:
        """What all layers of a round share: done once, by its first layer."""
        if self.device.type == "cuda":
            work_list_of(batch, self.heads, self.device)
        else:
            for group in padded_groups(batch):
                group.mask(None, self.heads.dtype, self.heads.num_heads // self.heads.num_kv_heads)

    def listing(self) -> Callable[[], object]:
        """The part of `prepare` that is a kernel. Only where the device is a GPU."""
        work = work_list_of(self.new_batch(), self.heads, self.device)
        return lambda: make_work_list(work.batch, self.heads, work.grid)

    def arm(self, name: str) -> Callable[[], Tensor]:
        """Attention of the layer alone. Raises `torch.OutOfMemoryError`."""
        return {OURS: self._ours, SDPA: self._sdpa, FLEX: self._flex}[name]()

    def as_rows(self, name: str, output: Tensor) -> Tensor:
        """An arm's output as ours has it: `[num_rows, num_heads, head_dim]`."""
        if name == SDPA:  # [batch, kv heads, group · nodes, dim]
            output = output.reshape(self.size.batch, -1, self.size.nodes, output.shape[-1])
        return output if name == OURS else output.transpose(1, 2).flatten(0, 1)

    def _ours(self) -> Callable[[], Tensor]:
        query, key, value, pages, batch = self._query, self._key, self._value, self._pages, self._batch
        return lambda: ragged_attention(query, key, value, pages, batch, scale=self._scale)

    def _sdpa(self) -> Callable[[], Tensor]:
        """The heads of a group are rows of one head: so each key is read once a tile and no grouping is needed, which
        the fused operator with a mask does not know."""
        size = self.size
        query, key, value = self._dense()
        query = query.view(size.batch, self.heads.num_kv_heads, -1, self.heads.head_dim)
        num_keys = size.context + size.nodes
        width = -(-num_keys // _MASK_ALIGNMENT) * _MASK_ALIGNMENT
        mask = query.new_zeros(size.nodes, width)[:, :num_keys]
        mask[:, size.context :].masked_fill_(~self._tree_mask, -torch.inf)
        grouped = query.new_empty(query.shape[2], width)[:, :num_keys]
        grouped.copy_(mask.repeat(self.heads.group_size, 1))
        return lambda: scaled_dot_product_attention(query, key, value, attn_mask=grouped[None, None], scale=self._scale)

    def _flex(self) -> Callable[[], Tensor]:
        query, key, value = self._dense()
        context, tree_mask, nodes = self.size.context, self._tree_mask, self.size.nodes

        def visible(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
            return (column < context) | tree_mask[row, (column - context).clamp(min=0)]

        blocks = create_block_mask(visible, None, None, nodes, context + nodes, device=self.device)
        # Without a GPU it runs uncompiled: compiling wants a C++ compiler, and only says that the arm works.
        run = torch.compile(flex_attention, fullgraph=True) if self.device.type == "cuda" else flex_attention
        return lambda: run(query, key, value, block_mask=blocks, scale=self._scale, enable_gqa=True)

    def _dense(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries `[batch, heads, nodes, dim]`, keys and values `[batch, kv heads, context + nodes, dim]`."""
        size = self.size
        both = []
        for pages, own in zip(self._pages, (self._key, self._value), strict=True):
            dense = own.new_empty(size.batch, own.shape[1], size.context + size.nodes, own.shape[2])
            for sequence, table in enumerate(self._tables):  # one at a time: the whole batch twice may not fit
                prefix = pages[table].flatten(0, 1)[: size.context]
                dense[sequence, :, : size.context] = prefix.transpose(0, 1)
            dense[:, :, size.context :] = own.view(size.batch, size.nodes, *own.shape[1:]).transpose(1, 2)
            both.append(dense)
        query = self._query.view(size.batch, size.nodes, *self._query.shape[1:]).transpose(1, 2)
        return query.contiguous(), both[0], both[1]
