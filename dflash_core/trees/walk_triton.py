"""The verification walk on a GPU, as an operator that compilers and CUDA graphs take."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from dflash_core.trees.kernels.walk import walk_kernel

_OTHER_ROWS = 512


@torch.library.custom_op("dflash::walk_trees", mutates_args=())
def walk_trees(
    token_ids: Tensor,
    parents: Tensor,
    end_rows: Tensor,
    choice_of_row: Tensor,
    choices: Tensor,
    slots: Tensor,
    staged_rows: Tensor,
    first_tree_row: Tensor,
    max_tree_rows: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Which rows of a round are accepted, and where they go; prefill rows and roots always are.

    Args:
        token_ids, parents, end_rows: int32 `[num_rows]`, as `structure` gives them, counted over all rows of the round.
        choice_of_row: int32 `[num_rows]`, the place of a parent's choice in `choices`.
        choices: int64 `[num_choices]`, the tokens that the target chose.
        slots: int32 `[num_rows]`, where each row's token goes if it is committed; −1 for nowhere.
        staged_rows: int32 `[num_rows]`, −1 for rows that are in no tree, others rising by one.
        first_tree_row: int32 `[1]`; tree rows stand together, at most `max_tree_rows` of them.

    Returns:
        int32 `[num_rows]` each: 1 where accepted; the slots of committed rows, −1 elsewhere; those of tree rows alone.
    """
    num_rows = len(token_ids)
    accepted, committed_slots, tree_slots = (torch.empty_like(token_ids) for _ in range(3))
    tree_rows = max(32, triton.next_power_of_2(min(num_rows, max_tree_rows)))
    walk_kernel[(1 + triton.cdiv(num_rows, _OTHER_ROWS),)](
        token_ids,
        parents,
        end_rows,
        choice_of_row,
        choices,
        slots,
        staged_rows,
        first_tree_row,
        accepted,
        committed_slots,
        tree_slots,
        num_rows,
        TREE_ROWS=tree_rows,
        OTHER_ROWS=_OTHER_ROWS,
        num_warps=4 if tree_rows <= 1024 else 16,
    )
    return accepted, committed_slots, tree_slots


@walk_trees.register_fake
def _(
    token_ids: Tensor,
    parents: Tensor,
    end_rows: Tensor,
    choice_of_row: Tensor,
    choices: Tensor,
    slots: Tensor,
    staged_rows: Tensor,
    first_tree_row: Tensor,
    max_tree_rows: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(token_ids), torch.empty_like(token_ids), torch.empty_like(token_ids)
