"""What the Triton attention must do, on a GPU and in Triton's interpreter on the CPU.

Collected by `test_kernels_gpu.py`, and by `test_kernels_interpreted.py` in a process of its own: whether Triton
interprets is settled when it is imported.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dflash_core.attention import AttentionBackend, RaggedBatch, RowGroup, ragged_attention
from dflash_core.attention.split_kv.attention import attend, attention_op
from dflash_core.attention.split_kv.device_batch import BatchSize, DeviceBatch, batch_arrays, fill_batch
from dflash_core.attention.split_kv.launch import is_interpreted
from dflash_core.attention.split_kv.step import attend_and_store_op
from dflash_core.attention.split_kv.tiles import CHUNK_UNIT
from dflash_core.attention.split_kv.work_list import (
    GridSize,
    HeadShape,
    WorkList,
    make_work_list,
    work_list_of,
    work_list_op,
)
from dflash_core.staged_arrays import StagedArrays
from tests.core.attention_oracle import dense_oracle, random_batch, random_inputs

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
MAX_ERROR = {BF16: 1e-2, FP16: 2e-3, FP32: 3e-6}  # relative, in the Euclidean norm over the whole output


@pytest.fixture(scope="module")
def device() -> torch.device:
    return torch.device("cpu" if is_interpreted() else "cuda")


@dataclass(frozen=True)
class Case:
    head_dim: int
    dtype: torch.dtype
    kv_block_size: int
    num_heads: int
    num_kv_heads: int
    kinds: str = "ctb"
    sliding_window: int | None = None
    softcap: float | None = None
    num_sequences: int = 3
    max_rows: int = 12
    max_prefix_len: int = 150

    def __str__(self) -> str:
        window = "" if self.sliding_window is None else f"-window{self.sliding_window}"
        return (
            f"{str(self.dtype)[6:]}-dim{self.head_dim}-page{self.kv_block_size}-{self.num_heads}over{self.num_kv_heads}"
            f"-{self.kinds}{window}{'' if self.softcap is None else '-softcap'}-rows{self.max_rows}"
        )


DTYPES_AND_DIMS = [
    Case(head_dim, dtype, page, 4, 2, sliding_window=window, softcap=softcap)
    for head_dim, page, window, softcap in [
        (32, 16, None, None),
        (64, 32, 7, None),
        (96, 64, None, 3.0),
        (128, 16, 40, 3.0),
        (256, 32, None, None),
    ]
    for dtype in (BF16, FP16, FP32)
]
GROUPS = [
    Case(32, FP32, 16, 3, 3, num_sequences=1, max_rows=40),
    Case(32, BF16, 16, 6, 2, "t", num_sequences=2, max_rows=40),
    Case(64, BF16, 16, 7, 1, "t", sliding_window=20),
    Case(32, FP32, 16, 16, 1, "t", max_rows=20),
    Case(32, BF16, 64, 32, 2, "b", max_rows=17),
]
KINDS = [Case(32, FP32, 16, 2, 1, kind, sliding_window=window) for kind in "ctb" for window in (None, 1, 9)]
LONG = [
    Case(32, FP32, 16, 2, 1, "t", num_sequences=1, max_prefix_len=1500),
    Case(32, FP32, 32, 2, 1, "ct", sliding_window=100, softcap=2.0, num_sequences=2, max_prefix_len=900),
    Case(32, BF16, 64, 4, 1, "b", num_sequences=2, max_prefix_len=900),
    Case(32, FP32, 16, 2, 2, "c", num_sequences=1, max_rows=150, max_prefix_len=0),
]


@pytest.mark.parametrize("case", DTYPES_AND_DIMS + GROUPS + KINDS + LONG, ids=str)
def test_equals_dense_float64(case: Case, device: torch.device) -> None:
    rng = np.random.default_rng([case.head_dim, case.num_heads, case.max_rows, case.sliding_window or 0])
    batch = batch_of(case, rng)
    check(case, batch, rng, device)


@pytest.mark.parametrize("seed", range(10))
def test_random_batches(seed: int, device: torch.device) -> None:
    rng = np.random.default_rng([seed, 77])
    num_kv_heads = int(rng.integers(1, 3))
    case = Case(
        head_dim=32,
        dtype=FP32,
        kv_block_size=int(rng.choice([16, 32, 64])),
        num_heads=num_kv_heads * int(rng.integers(1, 17)),
        num_kv_heads=num_kv_heads,
        sliding_window=int(rng.integers(1, 200)) if rng.random() < 0.5 else None,
        softcap=2.0 if rng.random() < 0.3 else None,
        num_sequences=int(rng.integers(1, 5)),
        max_rows=int(rng.choice([1, 3, 20])),
        max_prefix_len=int(rng.choice([0, 40, 400])),
    )
    check(case, batch_of(case, rng), rng, device)


def test_equals_the_torch_backend(device: torch.device) -> None:
    rng = np.random.default_rng(11)
    case = Case(64, FP32, 16, 4, 2)
    batch = replace(batch_of(case, rng), device=device)
    inputs = inputs_of(case, batch, rng, device)
    by_torch = ragged_attention(*inputs, batch, scale=0.3, backend=AttentionBackend.TORCH)
    by_triton = ragged_attention(*inputs, batch, scale=0.3, backend=AttentionBackend.TRITON)
    torch.testing.assert_close(by_triton, by_torch, rtol=1e-5, atol=1e-5)


def test_a_sequence_is_untouched_by_what_stands_in_others_pages_and_rows(device: torch.device) -> None:
    rng = np.random.default_rng(6)
    groups = [RowGroup.causal(3, 25, [0, 1]), RowGroup.bidirectional(5, 19, [2, 3])]
    batch = RaggedBatch.pack(groups, 16)
    query, key, value, kv_pages = (x.to(device) for x in random_inputs(rng, batch, 4, 2, 32, 8))
    clean = triton_attention(query, key, value, kv_pages, batch)
    kv_pages[:, :2] = kv_pages[:, 3, 3:] = kv_pages[:, 4:] = float("nan")
    key[:3] = value[:3] = float("nan")
    dirty = triton_attention(query, key, value, kv_pages, replace(batch))
    assert torch.equal(clean[3:], dirty[3:])


def test_rows_and_heads_may_lie_apart_in_memory(device: torch.device) -> None:
    """As views of one fused projection, or transposed, as transformers hands them over."""
    rng = np.random.default_rng(8)
    case = Case(32, FP32, 16, 4, 2)
    batch = batch_of(case, rng)
    query, key, value, pages = inputs_of(case, batch, rng, device)
    fused = torch.cat([query, key, value], 1)
    views = fused[:, :4], fused[:, 4:6].transpose(0, 1).contiguous().transpose(0, 1), fused[:, 6:]
    layers = torch.stack([torch.zeros_like(pages), pages], 2)  # strides of another layout of pools
    got = triton_attention(*views, layers[:, :, 1], batch)
    assert torch.equal(got, triton_attention(query, key, value, pages, replace(batch)))


def test_padding_changes_nothing_and_gives_zeros(device: torch.device) -> None:
    rng = np.random.default_rng(9)
    case = Case(32, FP32, 16, 4, 2, max_prefix_len=500)
    heads = HeadShape(4, 2, 32, FP32)
    size = BatchSize(num_rows=64, num_sequences=6, max_blocks=40)
    staged = StagedArrays(batch_arrays(size), device)
    padded = DeviceBatch.view(staged, size)
    grid = GridSize.of(heads, size.num_rows, size.num_sequences, 32, False, device)
    for _ in range(2):  # the second batch finds what the first one left behind
        batch = batch_of(case, rng)
        query, key, value, pages = inputs_of(case, batch, rng, device)
        fill_batch(staged, batch, size)
        staged.send(batch.num_sequences)
        work = make_work_list(padded, heads, grid)
        rows = [torch.cat([x, x.new_full((64 - len(x), *x.shape[1:]), torch.nan)]) for x in (query, key, value)]
        got = attend(*rows, pages, work, scale=0.3)
        expected = dense_oracle(query, key, value, pages, batch, 0.3, None, None)
        assert relative_error(got[: batch.num_rows], expected) < MAX_ERROR[FP32]
        assert torch.equal(got[batch.num_rows :], torch.zeros_like(got[batch.num_rows :]))


@pytest.mark.parametrize("seed", range(4))
def test_work_list_holds_every_item_once(seed: int, device: torch.device) -> None:
    rng = np.random.default_rng([seed, 5])
    num_sequences = int(rng.choice([1, 5, 40]))
    heads = HeadShape(8, int(rng.choice([1, 2, 8])), 64, BF16)
    groups = []
    for _ in range(num_sequences):
        prefix_len = int(rng.choice([0, 60, 500, 4000]))
        groups.append(RowGroup.causal(int(rng.choice([1, 16, 64, 200])), prefix_len, range(-(-prefix_len // 16))))
    batch = RaggedBatch.pack(groups, 16)
    work = work_list_of(batch, heads, device)
    num_items, chunk_len = work.header.tolist()
    assert chunk_len % CHUNK_UNIT == 0

    expected, slots = set(), list[int]()
    row_splits = work.row_splits.cpu().numpy()
    for s in range(num_sequences):
        start, end = int(batch.cu_rows[s]), int(batch.cu_rows[s + 1])
        splits = max(1, -(-(int(batch.prefix_lens[s]) + min(end - start, chunk_len)) // chunk_len))
        assert (row_splits[start:end, 0] == splits).all()
        if splits > 1:
            slots += [first + split for first in row_splits[start:end, 1].tolist() for split in range(splits)]
        for tile in range(-(-(end - start) * heads.group_size // work.grid.tile_rows)):
            expected |= {(s, tile, head, split) for head in range(heads.num_kv_heads) for split in range(splits)}
    items = [tuple(item) for item in work.items[:num_items].tolist()]
    assert len(items) == len(expected) <= work.grid.max_items
    assert set(items) == expected
    assert len(set(slots)) == len(slots) <= work.grid.max_partial_rows
    assert max(slots, default=0) < work.grid.max_partial_rows
    assert chunk_len == best_chunk_len(batch, heads, work)


def test_one_long_sequence_is_split_among_all_programs(device: torch.device) -> None:
    batch = RaggedBatch.pack([RowGroup.causal(1, 8000, range(500))], 16)
    work = work_list_of(batch, HeadShape(4, 1, 64, BF16), device)
    assert work.header[0].item() > 0.75 * work.grid.num_programs


def test_ops_tell_compilers_the_truth(device: torch.device) -> None:
    """Schemas and fake implementations, and a whole graph through a compiler's front end."""
    rng = np.random.default_rng(10)
    case = Case(32, FP32, 16, 4, 2, max_rows=4, num_sequences=2, max_prefix_len=40)
    batch = batch_of(case, rng)
    inputs = inputs_of(case, batch, rng, device)
    work = work_list_of(batch, HeadShape(4, 2, 32, FP32), device)
    on_device, grid = work.batch, work.grid
    sizes = (batch.num_rows, 2, 2, grid.tile_rows, grid.num_programs, grid.max_items, grid.max_partial_rows)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(work_list_op, (on_device.cu_rows, on_device.prefix_lens, *sizes), test_utils=checks)
    attention = (*inputs, work.tensors, work.grid_numbers, 0.3, 9, None)
    torch.library.opcheck(attention_op, attention, test_utils=checks)
    pages, staging = inputs[3].clone()[None], torch.zeros(1, 2, 8, 2, 32, device=device)
    slots = torch.arange(batch.num_rows, dtype=torch.int32, device=device)
    stored = (*inputs[:3], pages, staging, 0, slots, slots, work.tensors, work.grid_numbers, 0.3, None, None)
    torch.library.opcheck(attend_and_store_op, stored, test_utils=checks)

    def layer(query: Tensor, key: Tensor, value: Tensor, pages: Tensor) -> Tensor:
        return attend(query * 2, key, value, pages, work, scale=0.3, sliding_window=9) + 1

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), layer(*inputs))


def batch_of(case: Case, rng: np.random.Generator) -> RaggedBatch:
    return random_batch(
        rng,
        case.num_sequences,
        case.kinds,
        case.max_rows,
        num_blocks_of(case),
        kv_block_size=case.kv_block_size,
        max_prefix_len=case.max_prefix_len,
    )


def num_blocks_of(case: Case) -> int:
    return case.num_sequences * (case.max_prefix_len // case.kv_block_size + 1)


def inputs_of(case: Case, batch: RaggedBatch, rng: np.random.Generator, device: torch.device) -> list[Tensor]:
    inputs = random_inputs(rng, batch, case.num_heads, case.num_kv_heads, case.head_dim, num_blocks_of(case))
    return [x.to(device, case.dtype) for x in inputs]


def check(case: Case, batch: RaggedBatch, rng: np.random.Generator, device: torch.device) -> None:
    inputs = inputs_of(case, batch, rng, device)
    scale = 1.5 * case.head_dim**-0.5
    got = ragged_attention(
        *inputs,
        batch,
        scale=scale,
        sliding_window=case.sliding_window,
        softcap=case.softcap,
        backend=AttentionBackend.TRITON,
    )
    assert got.dtype == case.dtype
    expected = dense_oracle(*inputs, batch, scale, case.sliding_window, case.softcap)
    assert relative_error(got, expected) < MAX_ERROR[case.dtype]


def triton_attention(query: Tensor, key: Tensor, value: Tensor, kv_pages: Tensor, batch: RaggedBatch) -> Tensor:
    return ragged_attention(query, key, value, kv_pages, batch, scale=0.3, backend=AttentionBackend.TRITON)


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got.cpu().double() - expected).norm() / expected.norm())


def best_chunk_len(batch: RaggedBatch, heads: HeadShape, work: WorkList) -> int:
    """The chunk length by the kernel's rule, one candidate and one sequence at a time."""
    grid, rows = work.grid, np.diff(batch.cu_rows).tolist()
    lengths = list(zip(rows, batch.prefix_lens.tolist(), strict=True))
    longest = max(n + p for n, p in lengths)
    best: tuple[int, int] | None = None
    for cuts in range(1, 129):
        chunk_len = -(-longest // (cuts * CHUNK_UNIT)) * CHUNK_UNIT
        items = partials = 0
        for n, p in lengths:
            splits = max(1, -(-(p + min(n, chunk_len)) // chunk_len))
            items += -(-n * heads.group_size // grid.tile_rows) * splits * heads.num_kv_heads
            partials += n * splits if splits > 1 else 0
        cost = -(-items // grid.num_programs) * (chunk_len // CHUNK_UNIT + 2)
        fits = items <= grid.max_items and partials <= grid.max_partial_rows
        if fits and (best is None or cost < best[0]):
            best = cost, chunk_len
    assert best is not None
    return best[1]
