"""What the commit of tree rows in Triton must do; collected like `attention_cases.py`."""

from __future__ import annotations

import pytest
import torch

from dflash_core.attention.split_kv.launch import is_interpreted
from dflash_core.cache.commit import commit_rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("num_kv_heads", "head_dim"), [(2, 32), (3, 96), (8, 512)])
def test_commit_moves_rows_of_all_layers(dtype: torch.dtype, num_kv_heads: int, head_dim: int) -> None:
    device = torch.device("cpu" if is_interpreted() else "cuda")
    generator = torch.Generator().manual_seed(1)
    staging = torch.randn(3, 2, 8, num_kv_heads, head_dim, generator=generator).to(device, dtype)
    pages = torch.randn(3, 2, 40, num_kv_heads, head_dim, generator=generator).to(device, dtype)
    tree_rows = torch.tensor([0, 2, 7, 3, 0], device=device)
    slots = torch.tensor([17, 4, 39, -1, 0], device=device)
    expected = pages.clone()
    for row, slot in zip(tree_rows.tolist(), slots.tolist(), strict=True):
        if slot >= 0:
            expected[:, :, slot] = staging[:, :, row]
    commit_rows(staging, pages, tree_rows, slots)
    assert torch.equal(pages, expected)
    commit_rows(staging, pages, tree_rows[:0], slots[:0])
    assert torch.equal(pages, expected)


def test_the_op_tells_compilers_the_truth() -> None:
    device = torch.device("cpu" if is_interpreted() else "cuda")
    staging, pages = torch.ones(2, 2, 4, 2, 16, device=device), torch.zeros(2, 2, 32, 2, 16, device=device)
    rows, slots = torch.tensor([1, 2], device=device), torch.tensor([5, 6], device=device)
    torch.library.opcheck(commit_rows, (staging, pages, rows, slots), test_utils=("test_schema", "test_faketensor"))
