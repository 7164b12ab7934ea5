"""The torch backend's view of a batch: sequences gathered into padded groups, built once per round.

A group is one dense attention call. Sequences share a call where the padding this costs is cheaper than another call.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dflash_core.attention.batch import Int32s, RaggedBatch
from dflash_core.jit import jit

CALL_CELLS = 3072
"""Padding (in cells of rows × keys) that costs about as much as one more attention call on a CPU."""

Longs = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PaddedGroup:
    """Some sequences of a batch as one dense call of `[num_sequences, max_rows] × [num_sequences, max_keys]`.

    The keys of a sequence are its prefix, then its in-flight rows, then padding.
    """

    sequences: list[int]
    max_rows: int
    max_keys: int
    slots: Tensor  # [num_sequences · max_keys] int64: the page slot of each key (any slot for keys not in pages)
    inflight_cells: slice | Tensor  # [group rows] where in-flight keys stand among the gathered keys
    rows: slice | Tensor  # [group rows] of the packed batch
    row_cells: Tensor | None  # [group rows] int64 where rows stand in `[num_sequences · max_rows]`; None: unpadded
    batch: RaggedBatch
    _masks: dict[tuple[int | None, torch.dtype, int], Tensor | None] = field(
        default_factory=dict, init=False, repr=False
    )

    @property
    def num_sequences(self) -> int:
        return len(self.sequences)

    def mask(self, sliding_window: int | None, dtype: torch.dtype, repeats: int) -> Tensor | None:
        """Additive mask `[num_sequences, 1, max_rows · repeats, max_keys]`, 0 or −inf; None where every row sees every
        key. Each row comes `repeats` times in a row."""
        cached = self._masks.get((sliding_window, dtype, repeats), False)
        if cached is False:
            visible = self._visible(sliding_window)
            mask = None
            if not visible.all():
                bias = np.where(visible, np.float32(0), np.float32(-np.inf))
                bias = np.repeat(bias, repeats, axis=1)
                mask = torch.from_numpy(bias).to(self.batch.device, dtype).unsqueeze(1)
            cached = self._masks[sliding_window, dtype, repeats] = mask
        assert cached is None or isinstance(cached, Tensor)
        return cached

    def _visible(self, sliding_window: int | None) -> npt.NDArray[np.bool_]:
        batch = self.batch
        visible = np.zeros((self.num_sequences, self.max_rows, self.max_keys), np.bool_)
        for cells, s in zip(visible, self.sequences, strict=True):
            start, end, prefix_len = (
                int(batch.cu_rows[s]),
                int(batch.cu_rows[s + 1]),
                int(batch.prefix_lens[s]),
            )
            rows = np.arange(start, end, dtype=np.int32)[:, None]
            first_row, end_row = batch.first_row[start:end], batch.end_row[start:end]
            own = cells[: end - start]
            own[:, :prefix_len] = True
            own[:, prefix_len : prefix_len + end - start] = (first_row <= rows) & (rows < end_row)
            if sliding_window is not None:
                positions = batch.positions[start:end]
                keys = np.concatenate([np.arange(prefix_len, dtype=np.int32), positions])
                own[:, : len(keys)] &= keys > positions[:, None] - np.int32(sliding_window)
            cells[end - start :, 0] = True  # padded rows see something, lest their softmax be NaN; nobody reads them
        return visible


def padded_groups(batch: RaggedBatch) -> list[PaddedGroup]:
    """The batch's groups, built on the first call."""
    if not batch.padded_groups:
        batch.padded_groups.extend(_build(batch, sequences) for sequences in _split(batch))
    return batch.padded_groups


def _split(batch: RaggedBatch) -> list[list[int]]:
    """Of all ways to part the sequences, the most rows first, the one whose padding and calls cost least.

    Asked one by one, each of many single rows would rather be padding beside a tree than a call by itself; together
    they are much cheaper in a call of theirs.
    """
    num_rows = np.diff(batch.cu_rows)
    num_keys = num_rows + batch.prefix_lens
    order = np.lexsort((-num_keys, -num_rows))
    begins = _begins(num_rows[order], num_keys[order])
    groups: list[list[int]] = []
    end = batch.num_sequences
    while end > 0:
        begin = int(begins[end])
        groups.append(sorted(order[begin:end].tolist()))
        end = begin
    return groups[::-1]


@jit
def _begins(num_rows: Int32s, num_keys: Int32s) -> Longs:
    """`[sequences + 1]` where the group begins that ends before a place, should the ones before it be parted best.

    `num_rows` do not rise.
    """
    num = len(num_rows)
    cells = np.empty(num + 1, np.int64)  # of the first so many, calls among them
    begins = np.zeros(num + 1, np.int64)
    cells[0] = 0
    for end in range(1, num + 1):
        cells[end] = np.iinfo(np.int64).max
        max_keys = 0
        for begin in range(end - 1, -1, -1):
            max_keys = max(max_keys, num_keys[begin])
            own = CALL_CELLS + num_rows[begin] * max_keys * (end - begin)
            if own >= cells[end]:
                break  # a longer one is no cheaper
            if cells[begin] + own < cells[end]:
                cells[end], begins[end] = cells[begin] + own, begin
    return begins


def _build(batch: RaggedBatch, sequences: list[int]) -> PaddedGroup:
    device = batch.device
    cu_rows, prefix_lens = batch.cu_rows, batch.prefix_lens
    num_rows = [int(cu_rows[s + 1] - cu_rows[s]) for s in sequences]
    max_rows = max(num_rows)
    max_keys = max(int(prefix_lens[s]) + n for s, n in zip(sequences, num_rows, strict=True))

    key_index = np.arange(max_keys)
    slots = np.zeros((len(sequences), max_keys), np.int64)
    for row, s in zip(slots, sequences, strict=True):
        prefix = key_index[: prefix_lens[s]]
        row[: len(prefix)] = batch.block_tables[s, prefix // batch.kv_block_size] * np.int64(batch.kv_block_size)
        row[: len(prefix)] += prefix % batch.kv_block_size
        if len(prefix):
            row[len(prefix) :] = row[0]  # a slot of its own, so that no other sequence's values are touched

    inflight_cells: slice | Tensor
    rows: slice | Tensor
    row_cells: Tensor | None = None
    if len(sequences) == 1:
        s, n = sequences[0], num_rows[0]
        inflight_cells = slice(int(prefix_lens[s]), int(prefix_lens[s]) + n)
        rows = slice(int(cu_rows[s]), int(cu_rows[s + 1]))
    else:
        inflight = [
            i * max_keys + int(prefix_lens[s]) + np.arange(n)
            for i, (s, n) in enumerate(zip(sequences, num_rows, strict=True))
        ]
        inflight_cells = torch.from_numpy(np.concatenate(inflight)).to(device)
        if len(sequences) == batch.num_sequences:
            rows = slice(0, batch.num_rows)
        else:
            rows = torch.from_numpy(
                np.concatenate([np.arange(cu_rows[s], cu_rows[s + 1], dtype=np.int64) for s in sequences])
            ).to(device)
        if min(num_rows) < max_rows:
            cells = [i * max_rows + np.arange(n) for i, n in enumerate(num_rows)]
            row_cells = torch.from_numpy(np.concatenate(cells)).to(device)
    return PaddedGroup(
        sequences=sequences,
        max_rows=max_rows,
        max_keys=max_keys,
        slots=torch.from_numpy(slots.reshape(-1)).to(device),
        inflight_cells=inflight_cells,
        rows=rows,
        row_cells=row_cells,
        batch=batch,
    )
