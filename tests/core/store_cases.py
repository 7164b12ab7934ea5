"""What writing rows in Triton must do; collected like `attention_cases.py`."""

from __future__ import annotations

import pytest
import torch

from dflash_core.attention.split_kv.launch import is_interpreted
from dflash_core.cache.store import scatter_rows, store_rows

DEVICE = torch.device("cpu" if is_interpreted() else "cuda")


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("num_kv_heads", "head_dim"), [(2, 32), (3, 96)])
def test_rows_go_to_pages_to_the_staging_buffer_or_nowhere(
    dtype: torch.dtype, num_kv_heads: int, head_dim: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    fused = torch.randn(5, 2 * num_kv_heads, head_dim, generator=generator).to(DEVICE, dtype)
    key, value = fused[:, :num_kv_heads], fused[:, num_kv_heads:].transpose(0, 1).contiguous().transpose(0, 1)
    pages = torch.randn(3, 2, 4, 8, num_kv_heads, head_dim, generator=generator).to(DEVICE, dtype)
    staging = torch.randn(3, 2, 6, num_kv_heads, head_dim, generator=generator).to(DEVICE, dtype)
    page_slots, staged_rows = ints(31, 7, -1, -1, -1), ints(-1, -1, 5, -1, 0)
    expected_pages, expected_staging = pages.clone(), staging.clone()
    for row, (slot, staged) in enumerate(zip(page_slots.tolist(), staged_rows.tolist(), strict=True)):
        for kind, source in enumerate((key, value)):
            if slot >= 0:
                expected_pages[1, kind, slot // 8, slot % 8] = source[row]
            elif staged >= 0:
                expected_staging[1, kind, staged] = source[row]
    store_rows(key, value, pages[1], staging[1], page_slots, staged_rows)
    assert torch.equal(pages, expected_pages)
    assert torch.equal(staging, expected_staging)


@pytest.mark.parametrize("width", [32, 1000, 2560])
def test_scattered_rows(width: int) -> None:
    rows = torch.randn(4, width, generator=torch.Generator().manual_seed(2)).to(DEVICE, torch.bfloat16)
    destination = torch.zeros(9, width, dtype=torch.bfloat16, device=DEVICE)
    expected = destination.clone()
    expected[8], expected[0] = rows[0], rows[3]
    scatter_rows(rows, ints(8, -1, -1, 0), destination)
    assert torch.equal(destination, expected)


def test_the_op_tells_compilers_the_truth() -> None:
    arguments = (torch.ones(2, 16, device=DEVICE), ints(1, -1), torch.zeros(4, 16, device=DEVICE))
    torch.library.opcheck(scatter_rows, arguments, test_utils=("test_schema", "test_faketensor"))
