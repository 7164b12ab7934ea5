"""What the verification walk in Triton must do; collected like `attention_cases.py`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dflash_core.attention.split_kv.launch import is_interpreted
from dflash_core.trees import structure
from dflash_core.trees.walk_triton import walk_trees

DEVICE = torch.device("cpu" if is_interpreted() else "cuda")


def walk_slowly(depths: list[int], tokens: list[int], choices: list[int]) -> list[bool]:
    """From each root follow the child with the chosen token, one row at a time."""
    accepted = [depth == 0 for depth in depths]
    for row, depth in enumerate(depths):
        if depth > 0:
            parent = max(r for r in range(row) if depths[r] == depth - 1)
            accepted[row] = accepted[parent] and tokens[row] == choices[parent]
    return accepted


@pytest.mark.parametrize("seed", range(20))
def test_equals_a_walk_row_by_row(seed: int) -> None:
    """Prefill rows, then trees, then padding; choices of trees behind those of two prompts."""
    rng = np.random.default_rng(seed)
    num_prefill, num_padding = int(rng.integers(0, 9)), int(rng.integers(0, 9))
    depths = np.array(
        [depth for _ in range(int(rng.integers(1, 6))) for depth in random_depths(rng, int(rng.integers(1, 30)))],
        np.int32,
    )
    num_trees = len(depths)
    tokens = rng.integers(0, 3, num_trees).astype(np.int32)
    choices = rng.integers(0, 3, num_trees + 2)
    num_rows = num_prefill + num_trees + num_padding

    def rows(values: np.ndarray, before: int, after: int) -> torch.Tensor:
        padded = np.concatenate([np.full(num_prefill, before), values, np.full(num_padding, after)])
        return torch.from_numpy(padded.astype(np.int32)).to(DEVICE)

    parents = structure.parents(depths)
    slots = rng.permutation(500)[:num_trees]
    slots[rng.random(num_trees) < 0.2] = -1
    accepted, committed, tree_slots = walk_trees(
        rows(tokens, 1, 0),
        rows(np.where(parents >= 0, parents + num_prefill, -1), -1, -1),
        rows(structure.end_rows(depths) + num_prefill, num_prefill, 0),
        rows(np.arange(num_trees) + 2, 0, 0),
        torch.from_numpy(choices).to(DEVICE),
        rows(slots, 7, -1),
        rows(np.arange(num_trees), -1, -1),
        torch.tensor([num_prefill], dtype=torch.int32, device=DEVICE),
        150,
    )
    expected = np.array(walk_slowly(depths.tolist(), tokens.tolist(), choices[2:].tolist()))
    end = num_prefill + num_trees
    assert accepted[:num_prefill].all()
    assert accepted[num_prefill:end].cpu().numpy().astype(bool).tolist() == expected.tolist()
    assert committed.tolist() == [7] * num_prefill + np.where(expected, slots, -1).tolist() + [-1] * num_padding
    assert tree_slots.tolist() == [-1] * num_prefill + np.where(expected, slots, -1).tolist() + [-1] * num_padding
    assert num_rows == len(accepted)


def test_the_op_tells_compilers_the_truth() -> None:
    ints = [torch.zeros(4, dtype=torch.int32, device=DEVICE) for _ in range(7)]
    arguments = (*ints[:4], torch.zeros(4, dtype=torch.int64, device=DEVICE), *ints[4:6], ints[6][:1], 4)
    torch.library.opcheck(walk_trees, arguments, test_utils=("test_schema", "test_faketensor"))


def random_depths(rng: np.random.Generator, num_rows: int) -> list[int]:
    depths = [0]
    while len(depths) < num_rows:
        depths.append(int(rng.integers(1, depths[-1] + 2)))
    return depths
