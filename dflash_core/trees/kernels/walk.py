"""The verification walk of a round's trees in one program, without a loop (see `dflash_core.trees.walk`)."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows"])
def walk_kernel(
    token_ids,  # int32 [num_rows]
    parents,  # int32 [num_rows]; negative: a root, a prefill row, padding
    end_rows,  # int32 [num_rows]: the first row after the row's subtree
    choice_of_row,  # int32 [num_rows]: where the row's choice stands among `choices`; of parents only
    choices,  # int64 [num_choices]
    slots,  # int32 [num_rows]: where the row's token goes if it is committed; negative: nowhere
    staged_rows,  # int32 [num_rows]: where a tree row was staged; negative: not in a tree
    accepted,  # int32 [num_rows] out: 1 for rows that the target would have written itself
    committed_slots,  # int32 [num_rows] out: `slots` where accepted, else −1
    tree_slots,  # int32 [num_rows] out: the same for tree rows alone
    num_rows,
    ROWS: tl.constexpr,  # a power of 2, at least num_rows
):
    rows = tl.arange(0, ROWS)
    is_row = rows < num_rows
    token = tl.load(token_ids + rows, mask=is_row, other=0)
    parent = tl.load(parents + rows, mask=is_row, other=-1)
    has_parent = parent >= 0
    place = tl.load(choice_of_row + parent, mask=has_parent, other=0)
    choice = tl.load(choices + place, mask=has_parent, other=0)
    is_bad = has_parent & (token != choice)
    # A subtree that reaches the last row ends beyond all: its end is nobody's, and so is that of good rows.
    end = tl.load(end_rows + rows, mask=is_row, other=ROWS)
    ends_here = tl.histogram(tl.where(is_bad & (end < ROWS), end, ROWS), ROWS, mask=is_bad & (end < ROWS))
    blocked = tl.cumsum(is_bad.to(tl.int32) - ends_here, 0)
    is_accepted = (blocked == 0) & is_row
    slot = tl.where(is_accepted, tl.load(slots + rows, mask=is_row, other=-1), -1)
    is_staged = tl.load(staged_rows + rows, mask=is_row, other=-1) >= 0
    tl.store(accepted + rows, is_accepted.to(tl.int32), mask=is_row)
    tl.store(committed_slots + rows, slot, mask=is_row)
    tl.store(tree_slots + rows, tl.where(is_staged, slot, -1), mask=is_row)
