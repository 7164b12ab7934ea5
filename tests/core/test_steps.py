"""What rank 0 tells the others arrives as it was."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from dflash_core.attention.batch import RaggedBatch
from dflash_core.contracts import SamplingParams
from dflash_core.parallel.ranks import Ranks
from dflash_core.parallel.steps import INLINE_BYTES, encode, hear, tell_prepare, tell_rows
from dflash_core.runners.target_pack import PackedRows
from dflash_core.sampling.arrays import SamplingArrays

CPU = torch.device("cpu")


class Wire:
    """Stands in for `Ranks`: what one end sends is what the other gets."""

    def __init__(self) -> None:
        self.sent: list[Tensor] = []
        self.is_leading = True

    def broadcast_(self, message: Tensor) -> None:
        if self.is_leading:
            self.sent.append(message.clone())
        else:
            message.copy_(self.sent.pop(0))


def rows_of(rng: np.random.Generator, num_prefills: int, num_trees: int, max_blocks: int) -> PackedRows:
    """Arrays of the sizes that go together, with any contents."""

    def ints(*shape: int, dtype: Any = np.int32) -> Any:
        return rng.integers(-1, 1 << 20, shape).astype(dtype)

    num_prefill_rows, num_tree_rows = 3 * num_prefills, 5 * num_trees
    num_rows, sequences = num_prefill_rows + num_tree_rows, num_prefills + num_trees
    num_choices = num_prefills + num_tree_rows
    params = SamplingParams(temperature=0.7, top_k=3, top_p=0.9, min_p=0.1, seed=2**64 - 3)
    return PackedRows(
        batch=RaggedBatch(
            cu_rows=ints(sequences + 1),
            prefix_lens=ints(sequences),
            block_tables=ints(sequences, max_blocks),
            positions=ints(num_rows),
            first_row=ints(num_rows),
            end_row=ints(num_rows),
            kv_block_size=16,
            device=CPU,
        ),
        token_ids=ints(num_rows),
        slots=ints(num_rows, dtype=np.int64),
        logit_rows=ints(num_choices, dtype=np.int64),
        sampling=SamplingArrays.repeated([params], [num_choices], ints(num_choices)),
        num_prefill_rows=num_prefill_rows,
        num_last_chunks=num_prefills,
        tree_token_ids=ints(num_tree_rows),
        tree_parents=ints(num_tree_rows),
        tree_end_rows=ints(num_tree_rows),
        cu_tree_rows=ints(num_trees + 1, dtype=np.int64),
        wants_features=False,
    )


def check_same(found: Any, expected: Any) -> None:
    for field in fields(expected):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(other, RaggedBatch | SamplingArrays):
            check_same(one, other)
        elif isinstance(other, np.ndarray):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        else:
            assert one == other


@pytest.mark.parametrize(
    ("num_prefills", "num_trees", "max_blocks"), [(1, 0, 1), (0, 1, 3), (2, 3, 7), (5, 40, 200), (0, 8, 2048)]
)
def test_rows_arrive_as_they_were(num_prefills: int, num_trees: int, max_blocks: int) -> None:
    wire = Wire()
    ranks = cast(Ranks, wire)
    rows = rows_of(np.random.default_rng(num_trees), num_prefills, num_trees, max_blocks)
    tell_rows(ranks, rows)
    tell_prepare(ranks)
    fits = 8 + len(encode(rows)) <= INLINE_BYTES
    assert len(wire.sent) == (2 if fits else 3)
    wire.is_leading = False
    found = hear(ranks, 16, CPU)
    assert found is not None
    check_same(found, rows)
    assert found.token_ids.flags.writeable, "torch would warn of each array"
    assert hear(ranks, 16, CPU) is None
    assert not wire.sent
