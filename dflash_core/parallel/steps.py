"""What rank 0 tells the others: the packed rows of a pass, as plain bytes, or to prepare.

```
| num_bytes | command | counts … | cu_rows | prefix_lens | block_tables | …
|← one broadcast of INLINE_BYTES →|← another of what does not fit: long contexts, large rounds
```
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dflash_core.attention.batch import RaggedBatch
from dflash_core.parallel.ranks import Ranks
from dflash_core.runners.target_pack import PackedRows
from dflash_core.sampling.arrays import SAMPLING_ARRAYS, SamplingArrays

INLINE_BYTES = 16 << 10

_COUNTS = ("num_sequences", "max_blocks", "num_rows", "num_choices", "num_prefill_rows", "num_last_chunks", "num_trees")


class Command(IntEnum):
    RUN = 0
    PREPARE = 1


def tell_prepare(ranks: Ranks) -> None:
    _tell(ranks, np.array([Command.PREPARE], np.int64).tobytes())


def tell_rows(ranks: Ranks, rows: PackedRows) -> None:
    _tell(ranks, encode(rows))


def hear(ranks: Ranks, kv_block_size: int, device: torch.device) -> PackedRows | None:
    """The rows of the next pass; None: prepare. Waits for as long as rank 0 is there."""
    message = torch.empty(INLINE_BYTES, dtype=torch.uint8)
    ranks.broadcast_(message)
    num_bytes = int(message[:8].view(torch.int64))
    if num_bytes > INLINE_BYTES - 8:
        rest = torch.empty(num_bytes - (INLINE_BYTES - 8), dtype=torch.uint8)
        ranks.broadcast_(rest)
        message = torch.cat([message, rest])
    data = message.numpy()[8 : 8 + num_bytes]
    if int(data[:8].view(np.int64)[0]) == Command.PREPARE:
        return None
    return decode(data, kv_block_size, device)


def encode(rows: PackedRows) -> bytes:
    batch = rows.batch
    counts = {
        "num_sequences": batch.num_sequences,
        "max_blocks": batch.block_tables.shape[1],
        "num_rows": rows.num_rows,
        "num_choices": rows.num_choices,
        "num_prefill_rows": rows.num_prefill_rows,
        "num_last_chunks": rows.num_last_chunks,
        "num_trees": len(rows.cu_tree_rows) - 1,
    }
    parts = [np.array([Command.RUN, *(counts[name] for name in _COUNTS)], np.int64).tobytes()]
    for owner, name, dtype, shape in _layout(counts):
        array = getattr({"batch": batch, "rows": rows, "sampling": rows.sampling}[owner], name)
        assert array.shape == shape, f"{name} is {array.shape}, not {shape}"
        parts.append(np.ascontiguousarray(array, dtype).tobytes())
    return b"".join(parts)


def decode(data: npt.NDArray[np.uint8], kv_block_size: int, device: torch.device) -> PackedRows:
    """The rows that `encode` was given; nobody waits for features."""
    header = 8 * (1 + len(_COUNTS))
    counts = dict(zip(_COUNTS, data[8:header].view(np.int64).tolist(), strict=True))
    found: dict[str, dict[str, npt.NDArray[Any]]] = {"batch": {}, "rows": {}, "sampling": {}}
    start = header
    for owner, name, dtype, shape in _layout(counts):
        end = start + int(np.prod(shape)) * np.dtype(dtype).itemsize
        found[owner][name] = np.frombuffer(data[start:end].tobytes(), dtype).reshape(shape).copy()
        start = end
    assert start == len(data), f"a step of {len(data)} bytes has arrays of {start}"
    return PackedRows(
        batch=RaggedBatch(**found["batch"], kv_block_size=kv_block_size, device=device),
        sampling=SamplingArrays(**found["sampling"]),
        num_prefill_rows=counts["num_prefill_rows"],
        num_last_chunks=counts["num_last_chunks"],
        wants_features=False,
        **found["rows"],
    )


def _layout(counts: dict[str, int]) -> Iterator[tuple[str, str, type[np.generic], tuple[int, ...]]]:
    """Whose array, its name, dtype and shape, in the order of the bytes."""
    sequences, rows, choices = (counts[name] for name in ("num_sequences", "num_rows", "num_choices"))
    tree_rows = (rows - counts["num_prefill_rows"],)
    yield "batch", "cu_rows", np.int32, (sequences + 1,)
    yield "batch", "prefix_lens", np.int32, (sequences,)
    yield "batch", "block_tables", np.int32, (sequences, counts["max_blocks"])
    for name in ("positions", "first_row", "end_row"):
        yield "batch", name, np.int32, (rows,)
    yield "rows", "token_ids", np.int32, (rows,)
    yield "rows", "slots", np.int64, (rows,)
    yield "rows", "logit_rows", np.int64, (choices,)
    for name, dtype in SAMPLING_ARRAYS.items():
        yield "sampling", name, dtype, (choices,)
    for name in ("tree_token_ids", "tree_parents", "tree_end_rows"):
        yield "rows", name, np.int32, tree_rows
    yield "rows", "cu_tree_rows", np.int64, (counts["num_trees"] + 1,)


def _tell(ranks: Ranks, data: bytes) -> None:
    first = np.zeros(INLINE_BYTES, np.uint8)
    head = np.frombuffer(np.array([len(data)], np.int64).tobytes() + data[: INLINE_BYTES - 8], np.uint8)
    first[: len(head)] = head
    ranks.broadcast_(torch.from_numpy(first))
    if len(data) > INLINE_BYTES - 8:
        ranks.broadcast_(torch.frombuffer(bytearray(data[INLINE_BYTES - 8 :]), dtype=torch.uint8))
